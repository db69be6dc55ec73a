"""`python -m benchmarks.probe`: attentive probes beside plain ones in PyTorch, on the same tokens.

The plain probe projects a key and a value for every token and trains one head at a time. Ours are
one head, and the 28 of the paper's grid in one pass; the grid's 28 plain runs are reckoned from one
without and one with batch normalisation, 14 each. Both read float16 tokens of aimv2-large at 224
pixels from one mapped file and begin with the same weights; their first losses are compared. What
bounds ours is stated beside it: the tokens converted to float32, and nothing else done with them.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CONTENDERS = ("plain", "plain_normalised", "one", "one_normalised", "grid", "tokens_alone")
GRID = 28
ALIKE = 1e-3  # of the first losses, of about 5


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.probe", description=__doc__)
    parser.add_argument("--batch", type=int, default=256, help="images in a step")
    parser.add_argument("--steps", type=int, default=4, help="of each contender, the first untimed")
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, help="the JSON file to write")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="aim-mlx-benchmark-") as folder:
        result = measure(folder, options.batch, options.steps, options.classes, options.rounds)
    print(markdown(result))
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(result, indent=1) + "\n")


def measure(folder: str, batch: int, steps: int, classes: int, rounds: int) -> dict[str, Any]:
    """Every contender once a round."""
    made = worker("make", folder=folder, count=2 * batch, classes=classes)
    common = {"folder": folder, "batch": batch, "steps": steps, "classes": classes}
    runs = [{name: worker(name, **common) for name in CONTENDERS} for _ in range(rounds)]
    for run in runs:
        for ours, theirs in (("one", "plain"), ("one_normalised", "plain_normalised")):
            apart = abs(run[ours]["first_loss"] - run[theirs]["first_loss"])
            if apart > ALIKE:
                raise SystemExit(f"{ours} and {theirs} do not start alike: {apart:.1e} apart")
    return {
        "date": datetime.now(UTC).isoformat(timespec="minutes"),
        "machine": made,
        **{name: value for name, value in common.items() if name != "folder"},
        "rounds": rounds,
        "runs": runs,
    }


def markdown(result: dict[str, Any]) -> str:
    """The medians, lowest and highest; ratios are taken within a round."""
    runs = result["runs"]

    def each(name: str, key: str = "milliseconds_an_image") -> list[float]:
        return [run[name][key] for run in runs]

    plain_grid = [
        GRID / 2 * (a + b) for a, b in zip(each("plain"), each("plain_normalised"), strict=True)
    ]
    rows = [
        ("one head", each("plain"), each("one")),
        ("one head, batch norm", each("plain_normalised"), each("one_normalised")),
        ("the grid of 28 heads", plain_grid, each("grid")),
    ]
    lines = [
        f"256 x 1024 tokens an image, {result['classes']} classes, {result['batch']} images a "
        f"step, {result['machine']['processor']}, {result['machine']['cores']} cores, "
        f"{result['rounds']} rounds; {result['date']}",
        "",
        "| | plain PyTorch, images/s | aim-mlx, images/s | times as fast |",
        "|---|---|---|---|",
    ]
    for name, theirs, ours in rows:
        ratios = [a / b for a, b in zip(theirs, ours, strict=True)]
        cells = (_range([1e3 / v for v in theirs]), _range([1e3 / v for v in ours]), _range(ratios))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    bound = _range([1e3 / v for v in each("tokens_alone")])
    peaks = ", ".join(f"{n} {max(each(n, 'peak_bytes')) / 1e9:.1f}" for n in CONTENDERS)
    loads = [run[name]["load"] for run in runs for name in CONTENDERS]
    return "\n".join(
        [
            *lines,
            "",
            f"Reading and converting the tokens alone: {bound} images/s. Peak memory, GB: {peaks}. "
            f"Load average: {_range(loads)}.",
        ]
    )


def _range(values: list[float]) -> str:
    return f"{median(values):.3g} ({min(values):.3g} to {max(values):.3g})"


def worker(name: str, **arguments: Any) -> dict[str, Any]:
    """Runs one contender in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.probe_workers", name, json.dumps(arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr}")
    print(f"{name}, load {os.getloadavg()[0]:.1f}", file=sys.stderr)
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
