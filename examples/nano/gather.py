"""Gathers what the small model is trained and tested on: python examples/nano/gather.py DATA

Needs npm, and `pip install resvg-py==0.5.0`; fetches 30 MB. Writes, as tables of `aim-mlx`:

    train.jsonl               pictures with several captions each: emoji in ten styles on varied
                              backgrounds, flags in two more, drawn shapes, letters
    held_out_style.jsonl      one picture of each concept in a style that is never trained on
    held_out_concepts.jsonl   a tenth of the concepts, which is in no picture of train.jsonl
    subgroups_*.csv           the same pictures with the subgroup that each belongs to
    languages/LL.jsonl        the pictures of the held-out style with names in other languages
    manifest.json             counts, versions and licences
"""

import argparse
import csv
import json
import zlib
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import draw
import numpy as np
from emoji import HELD_OUT_STYLE, LANGUAGES, NAMES, STYLES, Concept, concepts, drawings
from PIL import Image


@dataclass(frozen=True)
class Drawing:
    """One emoji in one style, and how many pictures are made of it: 0 for one that is plain."""

    style: str
    concept: Concept
    svg: str
    pictures: int = 0

    @property
    def name(self) -> str:
        return f"{self.style}-{self.concept.code}"


def captions(concept: Concept, ground: str, rng: np.random.Generator) -> list[str]:
    """The name, the name in a sentence, with tags, with its subgroup, and in three languages."""
    name = concept.names["en"]
    sentence = str(rng.choice(["a drawing of {}", "an icon of {}", "a picture of {}", "{} emoji"]))
    tags = rng.permutation(np.array(concept.tags, object))[:4]
    others = rng.choice([each for each in LANGUAGES if each != "en"], 3, replace=False)
    found = [name, sentence.format(name), f"{concept.subgroup}: {name}"]
    found += [f"{name}: {', '.join(tags)}"] if len(tags) else []
    found += [f"{name} on a {ground} background"] if ground else []
    return [*found, *(concept.names[each] for each in others)]


def render(task: tuple[Path, int, Drawing]) -> list[dict[str, str]]:
    """Writes the pictures of one drawing; their rows of path and caption."""
    folder, seed, each = task
    if not each.pictures:
        return [_save(draw.plain(each.svg), folder, each.name, [each.concept.names["en"]])[0]]
    rows = []
    for number in range(each.pictures):
        name = f"{each.name}-{number}"
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
        picture, ground = draw.varied(each.svg, rng)
        rows += _save(picture, folder, name, captions(each.concept, ground, rng))
    return rows


def render_drawn(task: tuple[Path, int, str, int]) -> list[dict[str, str]]:
    """Writes one picture of shapes or of a letter; its rows."""
    folder, seed, kind, number = task
    rng = np.random.default_rng([seed, zlib.crc32(f"{kind}-{number}".encode())])
    picture, names = draw.shapes(rng) if kind == "shapes" else draw.letter(rng)
    return _save(picture, folder, f"{kind}-{number}", names)


def gather(folder: Path, pictures: int, drawn: dict[str, int], seed: int) -> dict[str, Any]:
    """Fetches, renders and writes everything; the manifest.

    `pictures` are made of each drawing to train on; `drawn` says how many of shapes and of letters.
    """
    packages, images = folder / "packages", folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    known = concepts(packages)
    every = [
        Drawing(package.style, known[code], svg)
        for package in STYLES
        for code, svg in drawings(package, known, packages)
    ]
    style = [each for each in every if each.style == HELD_OUT_STYLE]
    ours = [each for each in every if each.style != HELD_OUT_STYLE]
    unseen = [each for each in ours if each.concept.is_held_out]
    seen = [
        Drawing(each.style, each.concept, each.svg, pictures)
        for each in ours
        if not each.concept.is_held_out
    ]
    with ProcessPoolExecutor() as pool:
        tables = {
            name: [
                row
                for rows in pool.map(render, [(images, seed, each) for each in part], chunksize=32)
                for row in rows
            ]
            for name, part in (
                ("train", seen),
                ("held_out_style", style),
                ("held_out_concepts", unseen),
            )
        }
        tasks = [(images, seed, kind, i) for kind, count in drawn.items() for i in range(count)]
        for rows in pool.map(render_drawn, tasks, chunksize=64):
            tables["train"] += rows
    for name, rows in tables.items():
        _write_jsonl(folder / f"{name}.jsonl", rows)
    for name, part in (("style", style), ("concepts", unseen)):
        _write_labels(folder / f"subgroups_{name}.csv", part)
    (folder / "languages").mkdir(exist_ok=True)
    for language in LANGUAGES:
        rows = [
            {"path": f"../images/{each.name}.png", "caption": each.concept.names[language]}
            for each in style
        ]
        _write_jsonl(folder / f"languages/{language}.jsonl", rows)
    return {
        "seed": seed,
        "concepts": {
            "all": len(known),
            "held_out": sum(concept.is_held_out for concept in known.values()),
        },
        "pictures": {name: len({row["path"] for row in rows}) for name, rows in tables.items()},
        "captions": {name: len(rows) for name, rows in tables.items()},
        "drawn": drawn,
        "drawings": {
            package.style: sum(each.style == package.style for each in every) for package in STYLES
        },
        "packages": [
            {"name": p.name, "version": p.version, "licence": p.licence, "author": p.author}
            for p in (*STYLES, NAMES)
        ],
    }


def _save(picture: Image.Image, folder: Path, name: str, names: list[str]) -> list[dict[str, str]]:
    picture.save(folder / f"{name}.png")
    return [{"path": f"images/{name}.png", "caption": caption} for caption in names]


def _write_jsonl(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(_lines(rows)), encoding="utf-8")


def _lines(rows: list[dict[str, str]]) -> Iterator[str]:
    return (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _write_labels(path: Path, part: list[Drawing]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["path", "label"])
        table.writerows((f"images/{each.name}.png", each.concept.subgroup) for each in part)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pictures", type=int, default=3, help="of each drawing, to train on")
    parser.add_argument("--shapes", type=int, default=2000, help="pictures of them")
    parser.add_argument("--letters", type=int, default=1500, help="pictures of them")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    drawn = {"shapes": given.shapes, "letters": given.letters}
    manifest = gather(given.folder, given.pictures, drawn, given.seed)
    text = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
    (given.folder / "manifest.json").write_text(text, encoding="utf-8")
    print(text, end="")
