"""`python -m benchmarks.search`: exact search beside numpy and faiss, on one file of vectors.

One query reads the whole matrix once, so the memory's rate bounds it; a hundred queries are bounded
by arithmetic, 2 * n * D * 100 operations. Each contender has a process of its own, in turn with the
others. This process imports neither numpy nor MLX, for a child's peak memory begins with its own.
"""

import argparse
import os
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.processes import fresh, spread, write_result

GB = 1e9
CONTENDERS = ("ours", "numpy", "faiss", "faiss_tuned")
NAMES = {
    "ours": "aim-mlx",
    "numpy": "numpy",
    "faiss": "faiss flat",
    "faiss_tuned": "faiss flat, tuned",
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.search", description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="for the matrix; a temporary one if absent")
    parser.add_argument("--output", type=Path, help="the JSON file to write")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="aim-mlx-benchmark-", dir=options.folder) as folder:
        result = measure(Path(folder) / "rows.f32", options.rows, options.dim, options.rounds)
    print(markdown(result))
    write_result(options.output, result)


def measure(path: Path, rows: int, dim: int, rounds: int) -> dict[str, Any]:
    """Every contender once a round, the order turned by one each round."""
    made = worker("make", path=str(path), rows=rows, dim=dim)
    runs: list[dict[str, Any]] = []
    for number in range(rounds):
        shift = number % len(CONTENDERS)
        order = CONTENDERS[shift:] + CONTENDERS[:shift]
        runs.append({name: worker(name, path=str(path), rows=rows, dim=dim) for name in order})
    found = [each.pop("rows") for run in runs for each in run.values()]
    if any(each != found[0] for each in found):
        raise SystemExit("the contenders did not find the same rows")
    return {
        "date": datetime.now(UTC).isoformat(timespec="minutes"),
        "machine": made,
        "shape": [rows, dim],
        "rounds": rounds,
        "runs": runs,
    }


def markdown(result: dict[str, Any]) -> str:
    rows, dim = result["shape"]
    matrix = 4 * rows * dim
    lines = [
        f"{rows:,} x {dim} float32 ({matrix / GB:.2f} GB), {result['machine']['processor']}, "
        f"{result['machine']['cores']} cores, {result['rounds']} rounds; {result['date']}",
        "",
        "| | " + " | ".join(NAMES.values()) + " |",
        "|---|" + "---|" * len(NAMES),
    ]
    for label, key in (
        ("ready to search, seconds", "ready"),
        ("the first query after that, seconds", "first"),
        ("one query, seconds", "one"),
        ("100 queries, seconds", "hundred"),
    ):
        cells = [
            spread([v for run in result["runs"] for v in run[name][key]], ".3f") for name in NAMES
        ]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    peaks = [max(run[name]["peak_bytes"] for run in result["runs"]) / matrix for name in NAMES]
    lines.append(f"| peak memory of the matrix | {' | '.join(f'{peak:.2f}' for peak in peaks)} |")
    loads = [load for run in result["runs"] for each in run.values() for load in each["load"]]
    return "\n".join([*lines, "", f"Load average while measuring: {spread(loads)}"])


def worker(name: str, **arguments: Any) -> dict[str, Any]:
    """Runs one contender in a fresh process."""
    result = fresh("benchmarks.search_workers", name, **arguments)
    print(f"{name}, load {os.getloadavg()[0]:.1f}", file=sys.stderr)
    return result


if __name__ == "__main__":
    main()
