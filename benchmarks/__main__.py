"""`python -m benchmarks`: measure everything, print one Markdown table, write JSON.

Ends with 1 where a goal is missed.

This process imports neither numpy nor MLX: on Linux a child's largest resident size begins with
that of its parent, and the memory measurement would read it.
"""

import argparse
import os
import sys
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.processes import fresh, write_result
from benchmarks.report import goals, markdown, summarise
from benchmarks.startup import startup


@dataclass(frozen=True)
class Plan:
    """How much is measured: rounds, images and files; `batches` of the encoder on both sides."""

    rounds: int = 3
    images: int = 16
    batches: tuple[int, ...] = (1, 4, 8)
    photos: int = 32
    few: int = 4
    many: int = 64
    starts: int = 10


QUICK = Plan(rounds=1, images=8, photos=6, many=16, starts=5)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one round, few images")
    parser.add_argument("--rounds", type=int, help="default: 3, or 1 if quick")
    parser.add_argument("--files", type=int, help="files of the larger folder for peak memory")
    parser.add_argument("--model", default="aimv2-large-patch14-224", help="a name or a folder")
    parser.add_argument("--output", type=Path, help="the JSON file to write")
    options = parser.parse_args()
    plan = QUICK if options.quick else Plan()
    changed = {"rounds": options.rounds, "many": options.files}
    plan = Plan(**vars(plan) | {name: n for name, n in changed.items() if n is not None})
    folder = Path(options.model)
    result = measure(plan, str(folder.resolve()) if folder.is_dir() else options.model)
    print(markdown(result))
    write_result(options.output, result)
    if missed := [goal["goal"] for goal in result["goals"] if not goal["holds"]]:
        raise SystemExit(f"missed: {'; '.join(missed)}")


def measure(plan: Plan, model: str) -> dict[str, Any]:
    machine = worker("machine")
    with tempfile.TemporaryDirectory(prefix="aim-mlx-benchmark-") as folder:
        weights, photos = (str(Path(folder) / name) for name in ("weights", "photos"))
        checkpoint = worker("make_checkpoint", model=model, folder=weights)
        side = checkpoint["image_size"]
        count = max(plan.photos, plan.few, plan.many)
        made = worker("make_photos", folder=photos, count=count, size=(4000, 3000))
        measured = {
            "checkpoint": checkpoint,
            "photos": made,
            "startup": startup(plan.starts),
            "encoder": {
                dtype: encoder_rounds(plan, weights, side, dtype)
                for dtype in ("float32", *(["float16", "bfloat16"] if machine["on_gpu"] else []))
            },
            "pipeline": {"rounds": pipeline_rounds(plan, weights, photos, side)},
            "memory": memory(plan, weights, photos),
            "loading": loading_rounds(plan, weights),
        }
    summary = summarise(measured)
    return {
        "date": datetime.now(UTC).isoformat(timespec="minutes"),
        "model": Path(model).name,
        "rounds": plan.rounds,
        "machine": machine,
        "summary": summary,
        "goals": goals(summary, measured, machine),
        "measured": measured,
    }


def encoder_rounds(plan: Plan, model: str, side: int, dtype: str) -> list[dict[str, Any]]:
    """Ours and theirs in turn for each batch size; "default" is what embed chooses itself."""
    rounds = []
    for _ in range(plan.rounds):
        ours, theirs = {}, {}
        common = {"model": model, "count": plan.images, "side": side, "dtype": dtype}
        for batch in plan.batches:
            ours[str(batch)] = worker("encode_ours", batch=batch, **common)
            theirs[str(batch)] = worker("encode_theirs", batch=batch, **common)
        ours["default"] = worker("encode_ours", batch=None, **common)
        rounds.append({"ours": ours, "theirs": theirs})
    return rounds


def pipeline_rounds(plan: Plan, model: str, photos: str, side: int) -> list[dict[str, Any]]:
    """A folder, the encoder alone on as many images, and the decoder alone, in turn."""
    photos = first(photos, plan.photos)
    return [
        {
            "folder": worker("embed_folder", model=model, folder=photos, side=side),
            "encoder": worker("encode_ours", model=model, count=plan.photos, side=side, batch=None),
            "decode": worker("decode_folder", folder=photos, side=side, count=5),
        }
        for _ in range(plan.rounds)
    ]


def loading_rounds(plan: Plan, model: str) -> list[dict[str, Any]]:
    """Ours and theirs in turn, after one of each that warms the disk cache."""
    each = {"ours": "load_ours", "theirs": "load_theirs"}
    rounds = [
        {side: worker(name, model=model) for side, name in each.items()}
        for _ in range(1 + plan.rounds)
    ]
    return rounds[1:]


def memory(plan: Plan, model: str, photos: str) -> dict[str, Any]:
    """Peak memory of a small folder and of a larger one."""
    return {
        name: worker("peak_memory", model=model, folder=first(photos, count))
        for name, count in (("few", plan.few), ("many", plan.many))
    }


def first(photos: str, count: int) -> str:
    """A folder with the first files of another."""
    target = Path(f"{photos}-{count}")
    if not target.is_dir():
        target.mkdir()
        for path in sorted(Path(photos).iterdir())[:count]:
            os.link(path, target / path.name)
    return str(target)


def worker(name: str, **arguments: Any) -> dict[str, Any]:
    """Runs one measurement in a fresh process and tells of it on stderr."""
    result = fresh("benchmarks.workers", name, **arguments)
    rate = result.get("images_per_second")
    shown = {k: v for k, v in arguments.items() if k in ("batch", "count", "dtype", "size")}
    print(f"{name} {shown} {f'{rate:.3f} images/s' if rate else ''}", file=sys.stderr)
    return result


if __name__ == "__main__":
    main()
