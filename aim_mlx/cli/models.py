"""`aim-mlx models`: the published models, their sizes and what is on this disk."""

import json
from math import prod
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from aim_mlx.config import LiTConfig, VisionConfig
    from aim_mlx.registry import ModelSpec

# What each list begins with: what the models are, and how IN-1k, top-1 on ImageNet, was measured.
_TITLES = {
    "Nano": "Nano: trained by this package and part of it, for drawings and for trying things out.",
    "AIMv2": "AIMv2: encoders. IN-1k with an attentive probe on the frozen trunk.",
    "LiT": "LiT: encoders with a text tower, for labels and queries in words. IN-1k zero-shot.",
    "AIMv1": "AIMv1: the first encoders, published as .pth files. IN-1k with a probe on the mean "
    "of the last six blocks, and of the best six.",
}
# Bits of a weight in the blocks, and of all others, which are never quantised. From float32, groups
# of 64 have a scale and a bias of 32 bits each: one bit more a weight.
_PRECISIONS = {"float32": (32, 32), "float16": (16, 16), "8 bits": (9, 32), "4 bits": (5, 32)}


def models(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the tables of docs/checkpoints.md.")
    ] = False,
) -> None:
    """List the published models and their sizes.

    Parameters, accuracy on ImageNet, memory at each precision, and what is on this disk.
    """
    if markdown:
        print(markdown_table())
        return
    from aim_mlx.weights.hub import cached

    for title, specs in families().items():
        rows = []
        for spec in specs:
            on_disk = spec.folder or (spec.repo and cached(spec.repo, spec.revision))
            here = "yes" if on_disk else "no"
            rows.append(described(spec.name) | {"on disk": here})
        if as_json:
            print(*map(json.dumps, rows), sep="\n")
        else:
            print(title, _line({key: key for key in rows[0]}), *map(_line, rows), "", sep="\n")


def families() -> dict[str, list["ModelSpec"]]:
    """The models by the titles of their families."""
    from aim_mlx.registry import MODELS

    listed: dict[str, list[ModelSpec]] = {title: [] for title in _TITLES.values()}
    for spec in MODELS.values():
        listed[_TITLES[spec.family]].append(spec)
    return listed


def described(name: str) -> dict[str, Any]:
    """What is known of a model without its weights; memory in gigabytes."""
    from aim_mlx.registry import MODELS
    from aim_mlx.weights.sizes import expected_shapes

    spec = MODELS[name]
    total = sum(map(prod, expected_shapes(spec.config).values()))
    row: dict[str, Any] = {
        "name": name,
        "pixels": spec.vision.image_size or "any",
        "width": spec.vision.embed_dim,
        "parameters": f"{total / 1e6:,.0f}M",
        "IN-1k": spec.top1 if spec.top1 is not None else "-",
    }
    if spec.best_layers:
        row["best blocks"] = f"{spec.best_top1} ({spec.best_layers[0]}-{spec.best_layers[-1]})"
    for precision in _PRECISIONS:
        row[precision] = f"{size_at(spec.config, precision) / 1e9:.2f} GB"
    return row | {
        "licence": spec.licence if spec.repo or spec.pickle or spec.folder else "no weights"
    }


def size_at(config: "VisionConfig | LiTConfig", precision: str) -> float:
    """Bytes of a model's weights at one of the precisions."""
    from aim_mlx.weights.sizes import expected_shapes

    bits, others = _PRECISIONS[precision]
    shapes = expected_shapes(config)
    return sum(
        prod(shape) * (bits if ".blocks." in key else others) / 8 for key, shape in shapes.items()
    )


def markdown_table() -> str:
    """The tables of docs/checkpoints.md."""
    return "\n\n".join(f"{title}\n\n{_table(specs)}" for title, specs in families().items())


def _table(specs: list["ModelSpec"]) -> str:
    rows = [described(spec.name) for spec in specs]
    lines = ["| " + " | ".join(rows[0]) + " |", "|---" * len(rows[0]) + "|"]
    return "\n".join(lines + ["| " + " | ".join(map(str, row.values())) + " |" for row in rows])


_WIDTHS = {"name": 33, "licence": 11, "parameters": 11, "best blocks": 12}


def _line(row: dict[str, Any]) -> str:
    return "  ".join(f"{row[key]!s:<{_WIDTHS.get(key, 8)}}" for key in row).rstrip()
