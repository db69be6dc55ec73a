"""Writes the drawings that the package brings: python examples/nano/sample.py DATA FOLDER

DATA is what gather.py wrote. Up to three drawings of each kind of thing in the style that the small
model never saw, with a table of their names and kinds beside the FOLDER, drawn by a fixed seed.
"""

import argparse
import csv
import json
import shutil
from collections import defaultdict
from pathlib import Path

import numpy as np

EACH = 3


def sample(data: Path, folder: Path) -> None:
    """Copies the drawings under their names, and writes FOLDER.csv."""
    with open(data / "held_out_style.jsonl", encoding="utf-8") as file:
        names = {row["path"]: row["caption"] for row in map(json.loads, file)}
    kinds = defaultdict(list)
    with open(data / "subgroups_style.csv", newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            kinds[row["label"]].append(row["path"])
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder.with_suffix(".csv"), "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["path", "label", "caption"])
        for kind, paths in sorted(kinds.items()):
            for path in sorted(rng.permutation(sorted(paths))[:EACH]):
                words = "".join(c if c.isalnum() else " " for c in names[path].lower()).split()
                name = f"{'-'.join(words)}.png"
                shutil.copyfile(data / path, folder / name)
                table.writerow([f"{folder.name}/{name}", kind, names[path]])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", metavar="DATA", type=Path)
    parser.add_argument("folder", metavar="FOLDER", type=Path)
    given = parser.parse_args()
    sample(given.data, given.folder)
