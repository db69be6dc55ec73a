"""`python -m benchmarks.first_second`: how soon the first vector is there, phase by phase.

`embed` of one photograph into a file, `search` by a photograph that is not in the store, and by one
that is, for which nothing is loaded: each in a process of its own, with the weights in the disk
cache. A phase has its seconds by the clock and of the processor.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from functools import wraps
from pathlib import Path
from typing import Any

from benchmarks.processes import fresh, spread, write_result

PHASES = ("import", "load", "digest", "decode", "encode", "rest")
NO_MODEL = "search, in the store"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.first_second", description=__doc__)
    parser.add_argument("--model", default="aimv2-large-patch14-224", help="a name or a folder")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, help="the JSON file to write")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="aim-mlx-benchmark-") as place:
        weights, photos = f"{place}/weights", Path(place, "photos")
        model = str(Path(options.model).resolve()) if Path(options.model).is_dir() else weights
        if model == weights:
            fresh("benchmarks.workers", "make_checkpoint", model=options.model, folder=weights)
        fresh("benchmarks.workers", "make_photos", folder=str(photos), count=2, size=(4000, 3000))
        rounds = [measure(model, photos, Path(place)) for _ in range(1 + options.rounds)]
    print_table(rounds[1:])  # the first one warms the disk cache
    write_result(options.output, {"rounds": rounds[1:]})


def measure(model: str, photos: Path, place: Path) -> dict[str, dict[str, list[float]]]:
    """The phases of each command."""
    known, other = sorted(map(str, photos.iterdir()))
    file, store = place / "x.npz", place / "store"
    file.unlink(missing_ok=True)
    shutil.rmtree(store, ignore_errors=True)
    commands = {
        "embed": ["embed", known, "-o", str(file), "--model", model],
        "embed, into a store": ["embed", known, "-o", str(store), "--model", model],
        "search, another photo": ["search", str(store), "--image", other],
        NO_MODEL: ["search", str(store), "--image", known],
    }
    phases = {}
    for name, command in commands.items():
        asked = {"arguments": command, "loads": name != NO_MODEL, "started": time.time()}
        phases[name] = fresh("benchmarks.first_second", "run", **asked)
        print(name, phases[name], file=sys.stderr)
    return phases


def print_table(rounds: list[dict[str, dict[str, list[float]]]]) -> None:
    """Medians of the rounds with the lowest and the highest."""
    for unit, title in enumerate(("seconds", "seconds of the processor")):
        print(f"\n| {title} | {' | '.join(PHASES)} | all |\n|{'---|' * (len(PHASES) + 2)}")
        for command in rounds[0]:
            cells = []
            for phase in (*PHASES, "all"):
                values = [each[command][phase][unit] for each in rounds if phase in each[command]]
                cells.append(spread(values, ".2f") if values else "")
            print(f"| {command} | {' | '.join(cells)} |")


def run(arguments: list[str], loads: bool, started: float) -> dict[str, list[float]]:
    """Runs a command; the seconds of each phase, by the clock and of the processor.

    A phase ends where the next one begins. Decoding and encoding overlap only with themselves: of
    one photograph.
    """
    ends = {"": (started, 0.0)}

    def end(phase: str) -> None:
        ends.setdefault(phase, (time.time(), time.process_time()))

    import aim_mlx.cli.main

    if loads:
        watch(end)
    try:
        aim_mlx.cli.main.main()
    except SystemExit as status:
        if status.code:
            raise
    end("rest")
    if not loads and "aim_mlx.loading" in sys.modules:
        raise SystemExit("a model was loaded for a photograph that is in the store")
    if loads and tuple(ends) != ("", *PHASES):
        raise SystemExit(f"expected the phases {PHASES}, got {tuple(ends)}")
    order = list(ends.items())
    phases = {
        phase: [b - a for a, b in zip(before, after, strict=True)]
        for (_, before), (phase, after) in zip(order, order[1:], strict=False)
    }
    return phases | {"all": [ends["rest"][0] - started, ends["rest"][1]]}


def watch(end: Callable[[str], None]) -> None:
    """Has the functions that begin and end a phase say so."""
    from aim_mlx import loading
    from aim_mlx.encoder import encoder, pipeline

    def load(*args: Any, **options: Any) -> Any:
        end("import")
        loaded = real_load(*args, **options)
        end("load")
        return loaded

    def digest(network: Any) -> str:
        value = real_digest(network)
        end("digest")
        return value

    def first(rows: Callable[..., Any], phase: str) -> Callable[..., Any]:
        @wraps(rows)
        def watched(*args: Any, **options: Any) -> Any:
            with closing(rows(*args, **options)) as source:
                for row in source:
                    end(phase)
                    yield row

        return watched

    real_load, real_digest = loading.load, encoder.parameters_digest
    loading.load, encoder.parameters_digest = load, digest
    pipeline.stream = first(pipeline.stream, "decode")
    encoder.Encoder.embed_stream = first(encoder.Encoder.embed_stream, "encode")


if __name__ == "__main__":
    if sys.argv[1:2] == ["run"]:
        asked = json.loads(sys.argv[2])
        sys.argv = ["aim-mlx", *asked["arguments"]]
        print(json.dumps(run(**asked)))
    else:
        main()
