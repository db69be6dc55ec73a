"""`python -m benchmarks.probe`: attentive probes beside plain ones in PyTorch, on the same tokens.

The plain probe projects a key and a value for every token and trains one head at a time. Ours are
one head, and the 28 of the paper's grid in one pass; the grid's 28 plain runs are reckoned from one
without and one with batch normalisation, 14 each. Both read float16 tokens of aimv2-large at 224
pixels from one mapped file and begin with the same weights; their first losses are compared. Ours
take batches of 512, as the paper's protocol does, plain ones of 256, with which they are faster.

The first epoch is told apart: in it, batch normalisation measures every image once. What bounds
ours is stated beside it: the tokens read and converted to float32, and nothing else done with them.
"""

import argparse
import os
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.processes import fresh, spread, write_result

PLAIN = ("plain", "plain_normalised")
OURS = ("one", "one_normalised", "grid", "tokens_alone")
GRID = 28
ALIKE = 1e-3  # of the first losses, of about 5


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.probe", description=__doc__)
    parser.add_argument("--batch", type=int, default=512, help="images in a step of ours")
    parser.add_argument("--plain-batch", type=int, default=256, help="and of PyTorch's")
    parser.add_argument("--epochs", type=int, default=3, help="of two steps, the first told apart")
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, help="the JSON file to write")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="aim-mlx-benchmark-") as folder:
        result = measure(folder, options)
    print(markdown(result))
    write_result(options.output, result)


def measure(folder: str, options: argparse.Namespace) -> dict[str, Any]:
    """Every contender once a round."""
    common = {"folder": folder, "classes": options.classes}
    batches = dict.fromkeys(PLAIN, options.plain_batch) | dict.fromkeys(OURS, options.batch)
    made = fresh("benchmarks.probe_workers", "make", **common, count=2 * options.batch)
    runs = []
    for _ in range(options.rounds):
        run = {}
        for name, batch in batches.items():
            asked = {**common, "batch": batch, "steps": 2 * options.epochs}
            run[name] = fresh("benchmarks.probe_workers", name, **asked)
            print(f"{name}, load {os.getloadavg()[0]:.1f}", file=sys.stderr)
        runs.append(run)
        for ours, theirs in (("one", "plain"), ("one_normalised", "plain_normalised")):
            apart = abs(run[ours]["first_loss"] - run[theirs]["first_loss"])
            if apart > ALIKE:
                raise SystemExit(f"{ours} and {theirs} do not start alike: {apart:.1e} apart")
    return {
        "date": datetime.now(UTC).isoformat(timespec="minutes"),
        "machine": made,
        "classes": options.classes,
        "batch": options.batch,
        "plain_batch": options.plain_batch,
        "epochs": options.epochs,
        "rounds": options.rounds,
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
        ("one head", each("plain"), "one"),
        ("one head, batch norm", each("plain_normalised"), "one_normalised"),
        ("the grid of 28 heads", plain_grid, "grid"),
    ]
    lines = [
        f"256 x 1024 tokens an image, {result['classes']} classes, batches of {result['batch']}, "
        f"plain ones of {result['plain_batch']}, {result['machine']['processor']}, "
        f"{result['machine']['cores']} cores, {result['rounds']} rounds; {result['date']}",
        "",
        "| images/s | plain PyTorch | aim-mlx | in the first epoch | times as fast |",
        "|---|---|---|---|---|",
    ]
    for label, theirs, name in rows:
        ours, first = each(name), each(name, "first_milliseconds_an_image")
        ratios = [a / b for a, b in zip(theirs, ours, strict=True)]
        cells = [_rates(theirs), _rates(ours), _rates(first), spread(ratios)]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    peaks = ", ".join(f"{n} {max(each(n, 'peak_bytes')) / 1e9:.1f}" for n in PLAIN + OURS)
    loads = [run[name]["load"] for run in runs for name in PLAIN + OURS]
    return "\n".join(
        [
            *lines,
            "",
            f"Reading and converting the tokens alone: {_rates(each('tokens_alone'))} images/s. "
            f"Peak memory, GB: {peaks}. Load average: {spread(loads)}.",
        ]
    )


def _rates(milliseconds: list[float]) -> str:
    return spread([1e3 / each for each in milliseconds])


if __name__ == "__main__":
    main()
