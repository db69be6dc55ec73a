"""`aim-mlx models`: the published models, their sizes and what is on this disk."""

import json
from math import prod
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from aim_mlx.config import LiTConfig, VisionConfig

# Bits of a weight in the blocks, and of all others, which are never quantised. From float32, groups
# of 64 have a scale and a bias of 32 bits each: one bit more a weight.
_PRECISIONS = {"float32": (32, 32), "float16": (16, 16), "8 bits": (9, 32), "4 bits": (5, 32)}


def models(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the table of docs/checkpoints.md.")
    ] = False,
) -> None:
    """List the published models and their sizes.

    Parameters, accuracy on ImageNet, memory at each precision, and what is on this disk.
    """
    if markdown:
        print(markdown_table())
        return
    from aim_mlx.registry import MODELS
    from aim_mlx.weights.hub import cached

    for name, spec in MODELS.items():
        row = described(name)
        row["on disk"] = "yes" if spec.repo and cached(spec.repo, spec.revision) else "no"
        if as_json:
            print(json.dumps(row))
            continue
        if name == next(iter(MODELS)):
            print(_line({key: key for key in row}))
        print(_line(row))


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
    for precision in _PRECISIONS:
        row[precision] = f"{size_at(spec.config, precision) / 1e9:.2f} GB"
    return row | {"licence": spec.licence if spec.repo else "no weights"}


def size_at(config: "VisionConfig | LiTConfig", precision: str) -> float:
    """Bytes of a model's weights at one of the precisions."""
    from aim_mlx.weights.sizes import expected_shapes

    bits, others = _PRECISIONS[precision]
    shapes = expected_shapes(config)
    return sum(
        prod(shape) * (bits if ".blocks." in key else others) / 8 for key, shape in shapes.items()
    )


def markdown_table() -> str:
    """The table of docs/checkpoints.md."""
    from aim_mlx.registry import MODELS

    rows = [described(name) for name in MODELS]
    lines = ["| " + " | ".join(rows[0]) + " |", "|---" * len(rows[0]) + "|"]
    return "\n".join(lines + ["| " + " | ".join(map(str, row.values())) + " |" for row in rows])


_WIDTHS = {"name": 33, "licence": 11, "parameters": 11}


def _line(row: dict[str, Any]) -> str:
    return "  ".join(f"{row[key]!s:<{_WIDTHS.get(key, 8)}}" for key in row).rstrip()
