"""Help pages in words: they ask for PATH or NUMBER, not for <path> or list[str]."""

import re
from typing import Any

import typer
from typer.core import TyperCommand

_TYPES = {"str": "TEXT", "path": "PATH", "Path": "PATH", "int": "NUMBER", "float": "NUMBER"}


class Command(TyperCommand):
    """A command whose usage and options are written in words."""

    def collect_usage_pieces(self, ctx: typer.Context) -> list[str]:
        return [_in_words(piece) for piece in super().collect_usage_pieces(ctx)]

    def format_options(self, ctx: typer.Context, formatter: Any) -> None:
        sections: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is None:
                continue
            argument = parameter.param_type_name == "argument"
            name = record[0].split(" <")[0].upper() if argument else record[0]
            line = re.sub(r"; x>=\d+(?=\])", "", record[1])
            sections["Arguments" if argument else "Options"].append((_in_words(name), line))
        for title, lines in sections.items():
            if lines:
                with formatter.section(title):
                    formatter.write_dl(lines)


class App(typer.Typer):
    """A Typer whose commands have such help pages."""

    def command(self, name: str | None = None, **options: Any):
        return super().command(name, cls=Command, **options)


def _in_words(text: str) -> str:
    """ "{SRC...}..." -> "SRC..."; "{path}" -> "PATH"; "--k <list[int]>" -> "--k NUMBER"."""
    text = re.sub(r"\{(.+?)(\.\.\.)?\}(\.\.\.)?", lambda it: it[1].upper() + (it[2] or ""), text)
    return re.sub(r"<(?:list\[)?(\w+)(?: range|\])?>", lambda it: _TYPES.get(it[1], it[1]), text)
