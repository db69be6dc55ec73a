"""`aim-mlx models`: the published models, their sizes and what is on this disk."""

import json
from math import prod
from typing import Annotated, Any

import typer

_PRECISIONS = {"float32": 32.0, "float16": 16.0, "8 bits": 8.5, "4 bits": 4.5}
# Quantised in groups of 64 with a scale and a bias of 16 bits each: half a bit more a weight.


def models(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the table of the README.")
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
        row = facts(name)
        row["on disk"] = "yes" if spec.repo and cached(spec.repo, spec.revision) else "no"
        if as_json:
            print(json.dumps(row))
            continue
        if name == next(iter(MODELS)):
            print(_line({key: key for key in row}))
        print(_line(row))


def facts(name: str) -> dict[str, Any]:
    """What is known of a model without its weights; memory in gigabytes."""
    from aim_mlx.registry import MODELS
    from aim_mlx.weights.sizes import expected_shapes

    spec = MODELS[name]
    shapes = expected_shapes(spec.config)
    total = sum(map(prod, shapes.values()))
    blocks = sum(prod(shape) for key, shape in shapes.items() if ".blocks." in key)
    row: dict[str, Any] = {
        "name": name,
        "pixels": spec.vision.image_size or "any",
        "width": spec.vision.embed_dim,
        "parameters": f"{total / 1e6:,.0f}M",
        "IN-1k": spec.top1 if spec.top1 is not None else "-",
    }
    for precision, bits in _PRECISIONS.items():
        rest = (total - blocks) * max(bits, 16)  # only the blocks are quantised
        row[precision] = f"{(blocks * bits + rest) / 8e9:.2f} GB"
    return row | {"licence": spec.licence if spec.repo else "no weights"}


def markdown_table() -> str:
    """The table of the README."""
    from aim_mlx.registry import MODELS

    rows = [facts(name) for name in MODELS]
    lines = ["| " + " | ".join(rows[0]) + " |", "|---" * len(rows[0]) + "|"]
    return "\n".join(lines + ["| " + " | ".join(map(str, row.values())) + " |" for row in rows])


_WIDTHS = {"name": 33, "licence": 11, "parameters": 11}


def _line(row: dict[str, Any]) -> str:
    return "  ".join(f"{row[key]!s:<{_WIDTHS.get(key, 8)}}" for key in row).rstrip()
