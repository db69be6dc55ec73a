"""HTML pages that are complete in themselves and on which nothing can run.

Nothing is loaded from anywhere: pictures are inlined, and the page's own policy forbids scripts and
remote content, whatever a file's name may hold.
"""

import base64
import html
import os
import re
from pathlib import Path
from urllib.parse import quote

from aim_mlx.images import ImageSource, thumbnail
from aim_mlx.wording import escaped

_SIDE = 320  # pixels of the longer edge of a thumbnail: sharp on a phone, 15 KB each

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_STYLE = """
:root { color-scheme: light dark; --page: #f6f6f4; --card: #fff; --text: #1c1c1a; --soft: #6a6a66;
  --line: #e2e2de; --bar: #3d7bd9; --empty: #ececea; --good: #2f9e63; --bad: #d4553f }
@media (prefers-color-scheme: dark) { :root { --page: #161617; --card: #212123; --text: #ececea;
  --soft: #9c9c9a; --line: #333336; --bar: #6ea1ee; --empty: #2b2b2e; --good: #4cbf82;
  --bad: #ee7a63 } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 1500px; padding: 1.5rem 1rem 3rem; background: var(--page);
  color: var(--text); font: 15px/1.45 system-ui, -apple-system, "Segoe UI", sans-serif }
h1 { font-size: 1.5rem; margin: 0; overflow-wrap: anywhere }
h2 { font-size: 1.1rem; margin: 2rem 0 .2rem; overflow-wrap: anywhere }
p { margin: .2rem 0 0; color: var(--soft); overflow-wrap: anywhere }
.warning { color: var(--text); border-left: .3rem solid var(--bad); padding-left: .7rem;
  margin-top: .6rem }
.sheet { display: grid; gap: .75rem; margin-top: .8rem;
  grid-template-columns: repeat(auto-fill, minmax(min(var(--least, 9.5rem), 44vw), 1fr)) }
figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: .6rem;
  overflow: hidden }
figcaption { padding: .5rem .65rem .6rem; font-size: .8rem; color: var(--soft);
  overflow-wrap: anywhere }
img { display: block; width: 100%; aspect-ratio: 1; object-fit: contain; background: var(--empty) }
@media print { figure { break-inside: avoid } }
"""
_HEAD = (
    '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    '<meta name="generator" content="aim-mlx">\n'
)
END = "</body>\n</html>\n"


def is_ours(path: Path) -> bool:
    """Whether a file is a page that begin() began; raises OSError."""
    if path.is_symlink() or not path.is_file():
        return False
    with open(path, "rb") as file:
        return file.read(len(_HEAD)) == _HEAD.encode()


def begin(title: str, style: str) -> str:
    """A page up to its first heading; `style` is what its sections need."""
    return (
        f'{_HEAD}<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{shown(title)}</title>\n<style>{_STYLE}{style}</style>\n</head>\n<body>\n"
    )


def shown(text: str) -> str:
    """Text for a page: markup is text, control characters and undecodable bytes are escapes."""
    return html.escape(escaped(text))


def named(path: str) -> str:
    """A path for a page, which may break after what separates its words."""
    return re.sub(r"(?<=\w)[/_-](?=\w)", r"\g<0><wbr>", shown(path))


def address(photo: str | os.PathLike[str], page: Path) -> str:
    """The address of a photo for a link: relative where it lies below the page, else whole.

    Whatever a name holds, it is no more than a name.
    """
    place, folder = os.path.abspath(photo), os.path.abspath(page.parent)
    if os.path.commonpath([place, folder]) == folder:
        return "./" + quote(os.fsencode(os.path.relpath(place, folder)))
    return "file://" + quote(os.fsencode(place))


def inlined(source: ImageSource) -> str:
    """An image as the address of a small JPEG. Raises ImageError."""
    data = base64.b64encode(thumbnail(source, _SIDE)).decode()
    return f"data:image/jpeg;base64,{data}"
