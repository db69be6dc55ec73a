"""`aim-mlx inspect`: what a checkpoint is."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer


def inspect(
    path: Annotated[Path, typer.Argument(help="A checkpoint folder or a .safetensors file.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Print what is in a checkpoint.

    Its layout, sizes, dtype and parameters, and the published models of these sizes.
    """
    from aim_mlx.weights.inspect import describe
    from aim_mlx.wording import escaped

    values = describe(path)
    if as_json:
        print(json.dumps(values))
        return
    width = max(map(len, values))
    for name, value in values.items():
        first, *more = _lines(value) if name == "provenance" else [_readable(value)]
        print(f"{name:<{width}}  {escaped(first)}")
        for line in more:
            print(f"{'':<{width}}  {escaped(line)}")


def _lines(values: Mapping[str, Any], indent: str = "") -> list[str]:
    """A line for each entry, those of an inner object after its name and set in."""
    lines: list[str] = []
    for name, value in values.items():
        if isinstance(value, dict) and value:
            lines += [f"{indent}{name}", *_lines(value, f"{indent}  ")]
        else:
            lines.append(f"{indent}{name} {_readable(value)}")
    return lines or ["-"]


def _readable(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {_readable(v)}" for k, v in value.items()) or "-"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_readable, value)) or "-"
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) and value >= 100_000 else str(value)
