"""Contact sheets: one HTML file with small pictures and captions, complete in itself."""

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from aim_mlx.errors import UNTRAINED, ImageError
from aim_mlx.files import disk_errors, publish
from aim_mlx.images import ImageSource, decoding_threads
from aim_mlx.report.page import END, address, begin, inlined, named, shown

_AT_ONCE = 64  # pictures decoded before the next are begun: bounds what waits to be written

_STYLE = """
figure { display: flex; flex-direction: column; max-width: 22rem }
.none { aspect-ratio: 1; background: var(--empty); display: grid; place-content: center;
  padding: .8rem; text-align: center; color: var(--soft); font-size: .85rem;
  overflow-wrap: anywhere; overflow: hidden }
figcaption div:first-child { color: var(--text); font-size: .95rem; font-weight: 600;
  font-variant-numeric: tabular-nums }
.bar { height: .3rem; margin: .1rem 0 .35rem; border-radius: .15rem; background: var(--empty) }
.bar i { display: block; height: 100%; border-radius: inherit; background: var(--bar) }
"""


@dataclass(frozen=True)
class Line:
    """A line of a caption; `bar`, 0 to 1, draws a bar of that share below it."""

    text: str
    bar: float | None = None


@dataclass(frozen=True)
class Picture:
    """An image, and the lines below it; the first line stands out."""

    image: ImageSource
    lines: Sequence[Line | str]


@dataclass(frozen=True)
class Section:
    """Pictures under one title; `note` is a sentence below it."""

    title: str
    pictures: Sequence[Picture]
    note: str = ""


@dataclass(frozen=True)
class Origin:
    """What the results on a page come from: `identity` is a model's, with `store` the store's."""

    identity: Mapping[str, Any]
    store: Path | None = None

    @property
    def sentence(self) -> str:
        """The model, the store and the time."""
        parts = [f"Model: {self.identity.get('model', 'unknown')}."]
        parts += [] if self.store is None else [f"Store: {self.store}."]
        return " ".join([*parts, f"{datetime.now():%Y-%m-%d %H:%M}."])


def write_contact_sheet(
    target: Path, title: str, sections: Sequence[Section], origin: Origin, note: str = ""
) -> None:
    """Writes a page of sections of pictures to `target`, complete or not at all.

    A picture of a file is a link to it. An image that cannot be decoded is shown as a frame with
    its reason. Memory does not grow with the pictures. Raises OutputError.
    """

    def write(file: BinaryIO) -> None:
        for part in _page(target, title, sections, origin, note):
            file.write(part.encode())

    with disk_errors("write", target):
        publish({target: write})


def _page(
    target: Path, title: str, sections: Sequence[Section], origin: Origin, note: str
) -> Iterator[str]:
    yield begin(title, _STYLE)
    yield f"<header><h1>{shown(title)}</h1>{_paragraph(note)}{_paragraph(origin.sentence)}"
    if origin.identity.get("trained") is False:
        yield f'<p class="warning">{shown(UNTRAINED.capitalize())}.</p>'
    yield "</header>\n"
    figure = partial(_figure, target=target)
    with ThreadPoolExecutor(decoding_threads()) as pool:
        for section in sections:
            yield f"<section>\n<h2>{shown(section.title)}</h2>{_paragraph(section.note)}\n"
            yield '<div class="sheet">\n'
            for start in range(0, len(section.pictures), _AT_ONCE):
                yield from pool.map(figure, section.pictures[start : start + _AT_ONCE])
            yield "</div>\n</section>\n"
    yield END


def _figure(picture: Picture, target: Path) -> str:
    try:
        image = f'<img alt="" src="{inlined(picture.image)}">'
        if isinstance(picture.image, (str, os.PathLike)):
            image = f'<a href="{address(picture.image, target)}">{image}</a>'
    except ImageError as error:
        image = f'<div class="none">{shown(str(error))}</div>'
    lines = "".join(map(_line, picture.lines))
    return f"<figure>{image}<figcaption>{lines}</figcaption></figure>\n"


def _line(line: Line | str) -> str:
    line = Line(line) if isinstance(line, str) else line
    text = f"<div>{named(line.text)}</div>"
    if line.bar is None:
        return text
    share = 100 * min(max(line.bar, 0.0), 1.0)
    return f'{text}<div class="bar"><i style="width:{share:.1f}%"></i></div>'


def _paragraph(text: str) -> str:
    return f"<p>{named(text)}</p>" if text else ""
