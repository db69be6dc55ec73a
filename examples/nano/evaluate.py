"""Measures small models on what they never saw: python examples/nano/evaluate.py DATA MODEL...

DATA is what gather.py wrote, a MODEL a folder that `aim-mlx lit train` or `aim-mlx pretrain` wrote.
Needs `pip install scikit-learn`, for its digits. Prints tables, whose intervals are of 95%:

    held-out style, held-out concepts, languages: models with words only. Recall at k: each name
        once asks for one of its pictures among all of the table. Identical pictures (OpenMoji draws
        the flags of France and St. Martin alike) are one. Zero-shot: the subgroup, among all, by
        its own words and by the names of its members.
    image tower: on the mean of its tokens or, in the attentive probe, on all of them. Digits are
        split by their order; and the nearest of some training pictures to each of the held-out
        style.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from emoji import LANGUAGES

import aim_mlx
from aim_mlx.data.labelled import Data, Labelled
from aim_mlx.data.pairs import Pairs, read_pairs
from aim_mlx.data.tables import beside, read_table
from aim_mlx.errors import AimError, OutputError, UsageError
from aim_mlx.files import disk_errors
from aim_mlx.tokens.source import token_shape

try:
    import measures
    from measures import Share
except ModuleNotFoundError as error:
    sys.exit(f"{error}: pip install scikit-learn")

Figures = dict[str, Share]
Results = dict[str, dict[str, Figures]]  # of each model: section -> figures
HELD_OUT = ("style", "concepts")
SAMPLE = 4_000  # training pictures among which the nearest is looked for
RANDOM_SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Tables:
    """What gather.py wrote, read: pairs by the name of their section, and some of train.jsonl."""

    pairs: dict[str, Pairs]
    subgroups: dict[str, Labelled]
    train: dict[str, str]  # path -> name of the concept


def read_tables(folder: Path) -> Tables:
    """All tables, so that one that is missing is named before anything is computed."""
    pairs = {f"held-out {name}": _pairs(folder / f"held_out_{name}.jsonl") for name in HELD_OUT}
    for language in LANGUAGES:
        pairs[language] = _pairs(folder / f"languages/{language}.jsonl")
    subgroups = {
        f"held-out {name}": Data(folder / f"subgroups_{name}.csv").labelled() for name in HELD_OUT
    }
    known = set(pairs["held-out style"].captions)
    return Tables(pairs, subgroups, _sample(folder / "train.jsonl", known))


def counts(tables: Tables) -> dict[str, dict[str, int]]:
    """How much is held out, by section."""
    found = {}
    for section, labelled in tables.subgroups.items():
        pairs = tables.pairs[section]
        sizes = Counter(item.labels[0] for item in labelled.items)
        found[section] = {
            "different pictures": len(pairs.paths),
            "names": len(set(pairs.captions)),
            "subgroups": len(sizes),
            "pictures in the largest": max(sizes.values()),
        }
    return found


def _pairs(table: Path) -> Pairs:
    pairs, skips = read_pairs(table)
    if skips:
        raise UsageError(
            f"{len(skips)} pictures of {table.name} cannot be read, the first because "
            f"{skips[0].detail}: gather them again"
        )
    return pairs


def _sample(table: Path, known: set[str]) -> dict[str, str]:
    """Some pictures of concepts, with the name, which is the first of a picture's captions."""
    names: dict[str, str] = {}
    for row in read_table(table, ("path", "caption")):
        names.setdefault(beside(table, row.values[0]), row.values[1])
    paths = sorted(path for path, name in names.items() if name in known)
    if not paths:
        raise UsageError(f"{table.name} has no picture of a concept of the held-out style")
    chosen = np.random.default_rng(0).permutation(len(paths))[:SAMPLE]
    return {paths[i]: names[paths[i]] for i in sorted(chosen)}


def load(name: str) -> aim_mlx.Encoder:
    """A model that can be measured."""
    encoder = aim_mlx.load(name)
    token_shape(encoder)  # refuses models without one size
    if isinstance(encoder, aim_mlx.LiT):
        encoder.tokenize(["a word"])  # refuses those that have no tokenizer
    return encoder


def evaluate(encoder: aim_mlx.Encoder, tables: Tables) -> dict[str, Figures]:
    """The figures of one model by section."""
    found: dict[str, Figures] = {}
    if isinstance(encoder, aim_mlx.LiT):
        vectors = measures.embedder(encoder, "attention")
        # All concepts are in this table.
        kinds = measures.kinds_of(
            tables.pairs["held-out style"], tables.subgroups["held-out style"]
        )
        for section, pairs in tables.pairs.items():
            found[section] = measures.words(encoder, pairs, vectors)
        for section, labelled in tables.subgroups.items():
            concepts = len(set(tables.pairs[section].captions))
            found[section] |= measures.zero_shot(encoder, labelled, kinds, concepts, vectors)
    style = tables.pairs["held-out style"]
    found["image tower"] = {
        **measures.on_digits(encoder),
        **measures.across_styles(encoder, tables.train, style),
    }
    return found


def with_random(encoders: dict[str, aim_mlx.Encoder]) -> dict[str, aim_mlx.Encoder]:
    """The encoders, and some at random initialisation for all that are of the same sizes."""
    first: dict[aim_mlx.VisionConfig, str] = {}
    for name, encoder in encoders.items():
        first.setdefault(encoder.model.config, name)
    return encoders | {
        f"random weights, sizes of {name}, seed {seed}": measures.random_encoder(
            encoders[name], seed
        )
        for name in first.values()
        for seed in RANDOM_SEEDS
    }


def markdown(results: Results) -> str:
    """A table for the sections of each kind: models in rows, figures in columns."""
    parts = []
    for section in ("held-out style", "held-out concepts", "image tower"):
        rows = {name: found[section] for name, found in results.items() if section in found}
        parts.append(_table(section, rows))
    rows = {
        f"{name}, {language}": found[language]
        for name, found in results.items()
        for language in LANGUAGES
        if language in found
    }
    parts.append(_table("languages", rows))
    return "\n\n".join(filter(None, parts))


def _table(title: str, rows: dict[str, Figures]) -> str:
    if not rows:
        return ""
    names = list(next(iter(rows.values())))
    lines = [[title, *names], ["---"] * (1 + len(names))]
    lines += [[name, *(_cell(figures[each]) for each in names)] for name, figures in rows.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(share: Share) -> str:
    low, high = share.interval
    return f"{share.value:.1%} ({low:.1%} to {high:.1%})"


def _as_json(results: Results) -> dict[str, Any]:
    return {
        name: {
            section: {figure: asdict(share) for figure, share in figures.items()}
            for section, figures in found.items()
        }
        for name, found in results.items()
    }


def main(folder: Path, models: Iterable[str], random: bool, target: Path | None) -> None:
    if target is not None and not target.parent.is_dir():
        raise OutputError(f"folder {str(target.parent)!r} does not exist: create it first")
    tables = read_tables(folder)
    encoders = {name: load(name) for name in models}
    results: Results = {}
    for name, encoder in (with_random(encoders) if random else encoders).items():
        print(f"measuring {name}", file=sys.stderr)
        results[name] = evaluate(encoder, tables)
    data = counts(tables)
    for section, numbers in data.items():
        print(f"{section}:", ", ".join(f"{count:,} {what}" for what, count in numbers.items()))
    print(f"\n{markdown(results)}")
    if target is not None:
        text = json.dumps({"data": data, "models": _as_json(results)}, indent=1) + "\n"
        with disk_errors("write", target):
            target.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", metavar="DATA", type=Path)
    parser.add_argument("models", metavar="MODEL", nargs="+")
    parser.add_argument("--random", action="store_true", help="also encoders that learned nothing")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the figures there, too")
    given = parser.parse_args()
    try:
        main(given.folder, given.models, given.random, given.json)
    except AimError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
