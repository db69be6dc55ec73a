"""Gathers what the small model is trained and tested on: python examples/nano/gather.py DATA

Needs npm, and `pip install resvg-py==0.5.0`; fetches 30 MB. Writes, as tables of `aim-mlx`:

    train.jsonl               pictures with several English captions each, to pre-train on: emoji in
                              ten styles on varied backgrounds, flags in two more, drawn shapes,
                              letters
    names.csv                 the emoji among these pictures with their names, to fine-tune on
    names_and_kinds.csv       the same, but one picture of each drawing has its kind for a name
    words.jsonl               the same pictures with more words, to learn words from: kinds of
                              things, single tags, names in other languages, phrases
    held_out_style.jsonl      one picture of each concept in a style that is never trained on
    held_out_concepts.jsonl   a tenth of the concepts, which none of these has
    subgroups_*.csv           the same pictures with the subgroup that each belongs to
    languages/LL.jsonl        the pictures of the held-out style with names in other languages
    manifest.json             counts, versions and licences
"""

import argparse
import csv
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
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


@dataclass(frozen=True)
class Picture:
    """One that is written: its path in the tables, its captions, and other words for it."""

    path: str
    captions: list[str]
    words: list[str]

    def rows(self, texts: list[str]) -> list[dict[str, str]]:
        return [{"path": self.path, "caption": text} for text in texts]


def captions(concept: Concept, rng: np.random.Generator) -> list[str]:
    """The name, in a sentence, with tags, and with its subgroup."""
    name = concept.names["en"]
    sentence = str(rng.choice(["a drawing of {}", "an icon of {}", "a picture of {}", "{} emoji"]))
    found = [name, sentence.format(name), f"{concept.subgroup}: {name}"]
    tags = [rng.permutation(np.array(concept.tags, object))[:4] for _ in range(2)]
    return [*found, *(f"{name}: {', '.join(each)}" for each in tags if len(each))]


def words(concept: Concept, rng: np.random.Generator) -> list[str]:
    """Kind (subgroup), tag, names in three languages; the kind in a phrase, and a name or tag."""
    tags = [str(rng.choice(concept.tags))] if concept.tags else []
    others = rng.choice([each for each in LANGUAGES if each != "en"], 3, replace=False)
    found = [concept.subgroup, *tags, *(concept.names[each] for each in others)]
    for what in (concept.subgroup, str(rng.choice([concept.names["en"], *tags]))):
        article = "an" if what[0].lower() in "aeiou" else "a"
        found.append(str(rng.choice(["{} {}", "a drawing of {} {}"])).format(article, what))
    return found


def render(task: tuple[Path, int, Drawing]) -> list[Picture]:
    """Writes the pictures of one drawing."""
    folder, seed, each = task
    if not each.pictures:
        return [_save(draw.plain(each.svg), folder, each.name, [each.concept.names["en"]])]
    made = []
    for number in range(each.pictures):
        name = f"{each.name}-{number}"
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
        picture = draw.varied(each.svg, rng)
        texts = captions(each.concept, rng), words(each.concept, rng)
        made.append(_save(picture, folder, name, *texts))
    return made


def render_drawn(task: tuple[Path, int, str, int]) -> list[Picture]:
    """Writes one picture of shapes or of a letter."""
    folder, seed, kind, number = task
    rng = np.random.default_rng([seed, zlib.crc32(f"{kind}-{number}".encode())])
    picture, names = draw.shapes(rng) if kind == "shapes" else draw.letter(rng)
    return [_save(picture, folder, f"{kind}-{number}", names)]


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
    drawn_tasks = [(images, seed, kind, i) for kind, count in drawn.items() for i in range(count)]
    with ProcessPoolExecutor() as pool:

        def written(part: list[Drawing]) -> list[Picture]:
            return sum(pool.map(render, [(images, seed, each) for each in part], chunksize=32), [])

        emoji = written(seen)
        train = emoji + sum(pool.map(render_drawn, drawn_tasks, chunksize=64), [])
        held_out = {"held_out_style": written(style), "held_out_concepts": written(unseen)}
    tables = {
        name: [row for picture in pictures for row in picture.rows(picture.captions)]
        for name, pictures in {"train": train, **held_out}.items()
    }
    tables["words"] = [row for each in train for row in each.rows(each.captions + each.words)]
    for name, rows in tables.items():
        _write_jsonl(folder / f"{name}.jsonl", rows)
    named = [(each.path, each.captions[0]) for each in emoji]
    kinds = [(each.path, f"kind: {each.words[0]}") for each in emoji]
    mixed = [
        kind if kind[0].endswith(f"-{pictures - 1}.png") else name
        for name, kind in zip(named, kinds, strict=True)
    ]
    _write_labels(folder / "names.csv", named)
    _write_labels(folder / "names_and_kinds.csv", mixed)
    for name, part in (("style", style), ("concepts", unseen)):
        rows = ((f"images/{each.name}.png", each.concept.subgroup) for each in part)
        _write_labels(folder / f"subgroups_{name}.csv", rows)
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


def _save(
    picture: Image.Image, folder: Path, name: str, captions: list[str], words: Sequence[str] = ()
) -> Picture:
    picture.save(folder / f"{name}.png")
    return Picture(f"images/{name}.png", captions, list(words))


def _write_jsonl(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(_lines(rows)), encoding="utf-8")


def _lines(rows: list[dict[str, str]]) -> Iterator[str]:
    return (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _write_labels(path: Path, rows: Iterable[tuple[str, str]]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["path", "label"])
        table.writerows(rows)


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
