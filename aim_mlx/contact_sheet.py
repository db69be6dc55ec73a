"""Contact sheets: one HTML file with small pictures and captions, complete in itself.

Nothing is loaded from anywhere: pictures are inlined, and the page's own policy forbids scripts and
remote content, whatever a file's name may hold.
"""

import base64
import html
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from aim_mlx.durable import publish
from aim_mlx.errors import ImageError, OutputError
from aim_mlx.images import ImageSource, thumbnail

_SIDE = 320  # pixels of the longer edge: sharp on a phone, 15 KB each
_AT_ONCE = 64  # pictures decoded before the next are begun: bounds what waits to be written

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_STYLE = """
:root { color-scheme: light dark; --page: #f6f6f4; --card: #fff; --text: #1c1c1a; --soft: #6a6a66;
  --line: #e2e2de; --bar: #3d7bd9; --empty: #ececea }
@media (prefers-color-scheme: dark) { :root { --page: #161617; --card: #212123; --text: #ececea;
  --soft: #9c9c9a; --line: #333336; --bar: #6ea1ee; --empty: #2b2b2e } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 1500px; padding: 1.5rem 1rem 3rem; background: var(--page);
  color: var(--text); font: 15px/1.45 system-ui, -apple-system, "Segoe UI", sans-serif }
h1 { font-size: 1.5rem; margin: 0; overflow-wrap: anywhere }
h2 { font-size: 1.1rem; margin: 2rem 0 .2rem; overflow-wrap: anywhere }
p { margin: .2rem 0 0; color: var(--soft); overflow-wrap: anywhere }
.sheet { display: grid; gap: .75rem; margin-top: .8rem;
  grid-template-columns: repeat(auto-fill, minmax(min(9.5rem, 44vw), 1fr)) }
figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: .6rem;
  overflow: hidden; display: flex; flex-direction: column; max-width: 22rem }
img, .none { display: block; width: 100%; aspect-ratio: 1; background: var(--empty) }
img { object-fit: contain }
.none { display: grid; place-content: center; padding: .8rem; text-align: center;
  color: var(--soft); font-size: .85rem; overflow-wrap: anywhere; overflow: hidden }
figcaption { padding: .5rem .65rem .6rem; font-size: .8rem; color: var(--soft);
  overflow-wrap: anywhere }
figcaption div:first-child { color: var(--text); font-size: .95rem; font-weight: 600;
  font-variant-numeric: tabular-nums }
.bar { height: .3rem; margin: .1rem 0 .35rem; border-radius: .15rem; background: var(--empty) }
.bar i { display: block; height: 100%; border-radius: inherit; background: var(--bar) }
@media print { figure { break-inside: avoid } }
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


def write_contact_sheet(
    target: Path, title: str, sections: Sequence[Section], note: str = ""
) -> None:
    """Writes a page of sections of pictures to `target`, complete or not at all.

    An image that cannot be decoded is shown as a frame with its reason. Memory does not grow with
    the pictures. Raises OutputError.
    """

    def write(file: BinaryIO) -> None:
        for part in _page(title, sections, note):
            file.write(part.encode())

    try:
        publish({target: write})
    except OSError as error:
        raise OutputError(
            f"cannot write {os.fspath(target)!r}: {error.strerror or error}"
        ) from error


def _page(title: str, sections: Sequence[Section], note: str) -> Iterator[str]:
    yield (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_shown(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<header><h1>{_shown(title)}</h1>{_paragraph(note)}</header>\n"
    )
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for section in sections:
            yield f"<section>\n<h2>{_shown(section.title)}</h2>{_paragraph(section.note)}\n"
            yield '<div class="sheet">\n'
            for start in range(0, len(section.pictures), _AT_ONCE):
                yield from pool.map(_figure, section.pictures[start : start + _AT_ONCE])
            yield "</div>\n</section>\n"
    yield "</body>\n</html>\n"


def _figure(picture: Picture) -> str:
    try:
        image = f'<img alt="" src="data:image/jpeg;base64,{_inlined(picture.image)}">'
    except ImageError as error:
        image = f'<div class="none">{_shown(str(error))}</div>'
    lines = "".join(map(_line, picture.lines))
    return f"<figure>{image}<figcaption>{lines}</figcaption></figure>\n"


def _line(line: Line | str) -> str:
    if isinstance(line, str):
        return f"<div>{_shown(line)}</div>"
    if line.bar is None:
        return f"<div>{_shown(line.text)}</div>"
    share = 100 * min(max(line.bar, 0.0), 1.0)
    bar = f'<div class="bar"><i style="width:{share:.1f}%"></i></div>'
    return f"<div>{_shown(line.text)}</div>{bar}"


def _inlined(source: ImageSource) -> str:
    """A small JPEG in base64. Raises ImageError."""
    return base64.b64encode(thumbnail(source, _SIDE)).decode()


def _paragraph(text: str) -> str:
    return f"<p>{_shown(text)}</p>" if text else ""


def _shown(text: str) -> str:
    """Text for a page: markup is text, control characters and undecodable bytes are escapes."""
    visible = "".join(
        c if c.isprintable() else c.encode("unicode_escape", "replace").decode() for c in text
    )
    return html.escape(visible)
