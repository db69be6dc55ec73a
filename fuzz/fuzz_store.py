"""Damaged and hostile stores, as many as asked for: README.md says how to run it."""

import argparse
import faulthandler
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.store_attacks import SECONDS, Scene, attack, outcomes  # noqa: E402


def main() -> int:
    """Attacks a store with each seed of a range; prints what was done wrong, and figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", type=int, nargs="?", default=5000, help="How many stores.")
    parser.add_argument("--first", type=int, default=0, help="The first seed.")
    options = parser.parse_args()
    failures, ways = 0, Counter()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        scene = Scene.make(Path(folder))
        for seed in range(options.first, options.first + options.count):
            faulthandler.dump_traceback_later(20 * SECONDS, exit=True)  # what no signal ends
            done = attack(scene, seed)
            ways.update(part.split()[0] for part in done.split(": ", 1)[1].split("; "))
            if wrong := outcomes(scene):
                failures += 1
                print(done, *wrong, sep="\n    ", flush=True)
            if (tried := seed + 1 - options.first) % 100 == 0:
                print(f"{tried} stores, {failures} with something wrong", file=sys.stderr)
        faulthandler.cancel_dump_traceback_later()
    seconds = time.monotonic() - started
    print(f"{options.count} stores, {failures} with something wrong, {seconds:.0f} s; {dict(ways)}")
    return min(failures, 1)


if __name__ == "__main__":
    sys.exit(main())
