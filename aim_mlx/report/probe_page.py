"""The report of a probe: one HTML page, complete in itself: what it can do and where it fails."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from aim_mlx.files import disk_errors, publish
from aim_mlx.report import charts
from aim_mlx.report.charts import Curve
from aim_mlx.report.page import END, begin, inlined, shown

_LARGEST_TABLE = 20  # classes whose confusions are numbers; more become a picture
_SHORT = 6  # letters of a name that lies above its column; a longer one stands
_LARGEST_MAP = 200  # classes of the picture; of more, those that are confused most
_CONFUSIONS = 20  # listed
_TILES = {
    "mean_average_precision": "mean average precision",
    "macro_f1": "F1, mean of the classes",
    "balanced_accuracy": "balanced accuracy: mean recall of the classes",
    "majority": "accuracy of always guessing the largest class",
    "top5_accuracy": "right class among the five best guesses",
    "ece": "mean gap between confidence and accuracy (ECE)",
}

_STYLE = """
body { max-width: 1120px; --least: 17rem }
.tiles, .pair { display: grid; gap: .75rem; margin: 1.1rem 0;
  grid-template-columns: repeat(auto-fit, minmax(min(10.5rem, 44vw), 1fr)) }
.pair { margin: .8rem 0 0; grid-template-columns: repeat(auto-fit, minmax(min(22rem, 100%), 1fr)) }
.tile, .card, .scroll { background: var(--card); border: 1px solid var(--line);
  border-radius: .6rem; padding: .75rem .9rem; min-width: 0 }
.tile b { display: block; font-size: 1.55rem; font-weight: 650; line-height: 1.25;
  font-variant-numeric: tabular-nums; overflow-wrap: anywhere }
.tile span { color: var(--soft); font-size: .85rem }
.card h3 { font-size: .95rem; margin: 0 0 .5rem }
.map { max-width: 52rem; margin-top: .8rem }
.scroll { overflow: auto; max-height: 32rem; padding: 0; margin-top: .8rem }
.pair > .scroll { margin-top: 0; align-self: start }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th, td { padding: .35rem .7rem; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--line) }
th { position: sticky; top: 0; background: var(--card); font-weight: 600; color: var(--soft);
  font-size: .85rem; z-index: 1 }
:is(th, td):first-child, .pairs :nth-child(2) { text-align: left; white-space: normal;
  overflow-wrap: anywhere; min-width: 7rem }
tr:last-child > * { border-bottom: 0 }
tr:has(.chosen) { font-weight: 650 }
.chosen::after { content: " (chosen)"; color: var(--bar) }
.meter { display: inline-block; width: 4.5rem; height: .5rem; border-radius: .25rem;
  margin-right: .5rem; background: var(--empty); overflow: hidden }
.number { display: inline-block; min-width: 4.2em }
.meter i { display: block; height: 100%; background: var(--bar) }
.cells tbody th { top: auto; left: 0; z-index: 0; color: var(--text); font-size: inherit;
  font-weight: 400; border: 0 }
.cells td { text-align: center; border: 1px solid var(--line); min-width: 2.4rem; padding: .35rem }
.cells thead th + th { text-align: center; padding: .35rem; vertical-align: bottom }
.tall thead span { writing-mode: vertical-rl; transform: rotate(180deg); max-height: 9rem;
  overflow: hidden }
.hit { background: color-mix(in srgb, var(--good) calc(var(--s) * 75%), transparent) }
.miss { background: color-mix(in srgb, var(--bad) calc(20% + var(--s) * 70%), transparent) }
.looks { display: flex }
.looks img { width: 50% }
.looks img:only-child { width: 100% }
figcaption { font-size: .85rem }
figcaption b { color: var(--text); font-weight: 600 }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1rem; margin: .6rem 0 0 }
dt { color: var(--soft) } dd { margin: 0; overflow-wrap: anywhere }
@media (max-width: 32rem) { dl { grid-template-columns: 1fr; gap: 0 } dd { margin-bottom: .4rem }
  .meter { display: none } th, td { padding: .35rem .5rem } }
"""


@dataclass(frozen=True)
class Mistake:
    """An image with what it is, what was said of it, and where the head looked.

    `wrong` is False for one that was only judged with little certainty.
    """

    path: str
    truth: str
    said: str
    photo: Image.Image
    attention: Image.Image | None = None
    wrong: bool = True


@dataclass(frozen=True)
class ProbeReport:
    """All that the page shows. `figures` are those of figures_of(), on the images of `split`.

    `heads` are rows for each head of the grid, the chosen one marked by "chosen".
    """

    title: str
    split: str
    figures: Mapping[str, Any]
    facts: Sequence[tuple[str, str]] = ()
    warnings: Sequence[str] = ()
    scores: Sequence[Curve] = ()
    losses: Sequence[Curve] = ()
    heads: Sequence[Mapping[str, Any]] = ()
    confusion: np.ndarray | None = None
    mistakes: Sequence[Mistake] = ()

    @property
    def several(self) -> bool:
        """Whether an image may have several classes."""
        return "exact_match" in self.figures


def write_report(target: Path, report: ProbeReport) -> None:
    """Writes the page, complete or not at all; raises OutputError."""
    with disk_errors("write", target):
        publish({target: "".join(_page(report)).encode()})


def _page(report: ProbeReport) -> Iterator[str]:
    yield begin(report.title, charts.STYLE + _STYLE)
    yield f"<header><h1>{shown(report.title)}</h1></header>\n"
    yield from (f'<p class="warning">{shown(text)}</p>\n' for text in report.warnings)
    yield _tiles(report)
    if report.facts:
        rows = (f"<dt>{shown(name)}</dt><dd>{shown(value)}</dd>" for name, value in report.facts)
        yield _card("How it was made", f"<dl>{''.join(rows)}</dl>")
    if report.scores:
        yield from _learning(report)
    yield from _classes(report)
    if report.confusion is not None:
        yield from _confusion(report.confusion, [c["name"] for c in report.figures["classes"]])
    yield from _calibration(report)
    if report.mistakes:
        yield from _mistakes(report.mistakes)
    yield END


def _tiles(report: ProbeReport) -> str:
    figures = report.figures
    name = "exact_match" if report.several else "accuracy"
    low, high = map(_percent, figures[f"{name}_interval"])
    tiles = {
        f"{name.replace('_', ' ')} on {figures['images']:,} images of {report.split}": (
            _percent(figures[name])
        ),
        "its 95% confidence interval": f"{low} to {high}",
        **{words: _percent(figures[key]) for key, words in _TILES.items() if key in figures},
    }
    boxes = (
        f'<div class="tile"><b>{value}</b><span>{shown(words)}</span></div>'
        for words, value in tiles.items()
    )
    return f'<div class="tiles">{"".join(boxes)}</div>\n'


def _learning(report: ProbeReport) -> Iterator[str]:
    yield "<h2>Learning</h2>\n"
    if report.heads:
        yield "<p>Each line is a head of the grid, measured on val. The chosen one stands "
        yield "out.</p>\n"
    drawn = [
        ("Score on val", charts.curves(report.scores, "score on val by epoch", True)),
        ("Loss on val", charts.curves(report.losses, "loss on val by epoch")),
    ]
    yield f'<div class="pair">{"".join(_card(name, svg) for name, svg in drawn if svg)}</div>\n'
    if not report.heads:
        return
    names = [name for name in report.heads[0] if name != "chosen"]
    rows = []
    for head in report.heads:
        first, *rest = (shown(str(head[name])) for name in names)
        rows.append(
            [f'<span class="chosen">{first}</span>' if head.get("chosen") else first, *rest]
        )
    yield _table(names, rows)


def _classes(report: ProbeReport) -> Iterator[str]:
    """A row for each class, the worst first, with its number where a picture names it so."""
    classes = report.figures["classes"]
    numbered = not report.several and len(classes) > _LARGEST_TABLE
    yield "<h2>Classes</h2>\n<p>The worst first. Recall is the share of the images of a class that "
    yield "were recognised, precision the share of the images taken for the class that are of it."
    yield f"{' The picture of confusions names a class by its number.' if numbered else ''}</p>\n"
    rows = []
    for number, each in enumerate(classes, 1):
        name = f"{number} {each['name']}" if numbered else each["name"]
        shares = [
            _share(each[key]) for key in ("precision", "f1", "average_precision") if key in each
        ]
        rows.append([shown(name), f"{each['images']:,}", _meter(each["recall"]), *shares])
    recalls = [2.0 if each["recall"] is None else each["recall"] for each in classes]
    columns = ["class", "images", "recall", "precision", "F1", "average precision"]
    worst_first = [rows[i] for i in np.argsort(recalls, kind="stable")]
    yield _table(columns[: len(rows[0])], worst_first)


def _confusion(table: np.ndarray, names: Sequence[str]) -> Iterator[str]:
    yield "<h2>Confusions</h2>\n<p>Rows: what the images are. Columns: what they were taken for."
    if len(names) <= _LARGEST_TABLE:
        yield f'</p>\n<div class="pair">{_cells(table, names)}{_confused(table, names)}</div>\n'
        return
    wrong = table.sum(axis=0) + table.sum(axis=1) - 2 * np.diag(table)
    kept: list[int] = np.sort(np.argsort(-wrong, kind="stable")[:_LARGEST_MAP]).tolist()
    yield " Green is right, red is wrong; a full colour is all of the class. Point at a square to "
    yield "see the names."
    if len(kept) < len(names):
        yield f" The {len(kept)} of {len(names)} classes that are confused most are shown."
    part, numbers = table[np.ix_(kept, kept)], [i + 1 for i in kept]  # as in the table of classes
    drawn = charts.confusion_map(part, [names[i] for i in kept], numbers, "confusions")
    yield f'</p>\n<div class="card map">{drawn}</div>\n{_confused(table, names)}'


def _confused(table: np.ndarray, names: Sequence[str]) -> str:
    """The pairs of classes that are confused most."""
    wrong = np.where(np.eye(len(table), dtype=bool), 0, table)
    order = np.argsort(-wrong, axis=None, kind="stable")[:_CONFUSIONS]
    pairs = [divmod(int(place), len(table)) for place in order if wrong.flat[place]]
    rows = [
        [shown(names[i]), shown(names[j]), f"{table[i, j]:,} of {table[i].sum():,}"]
        for i, j in pairs
    ]
    return _table(["class", "taken for", "images"], rows, "pairs") if rows else ""


def _cells(table: np.ndarray, names: Sequence[str]) -> str:
    """All confusions as numbers in colour."""
    sums = np.maximum(table.sum(axis=1), 1)
    head = "<th></th>" + "".join(f"<th><span>{shown(name)}</span></th>" for name in names)
    body = ""
    for i, name in enumerate(names):
        body += f"<tr><th>{shown(name)}</th>"
        for j, count in enumerate(table[i]):
            kind = "hit" if i == j else "miss"
            mark = f' class="{kind}" style="--s:{count / sums[i]:.3f}"' if count else ""
            body += f"<td{mark}>{count or ''}</td>"
        body += "</tr>"
    return _scroll(head, body, "cells" if max(map(len, names)) <= _SHORT else "cells tall")


def _calibration(report: ProbeReport) -> Iterator[str]:
    # With several labels each class of each image is a decision of its own.
    counted = "decisions" if report.several else "images"
    bins, gap = report.figures["calibration"], _percent(report.figures["ece"])
    yield "<h2>Calibration</h2>\n<p>Can its confidence be trusted? Of all answers given with 80% "
    yield "confidence, eight in ten should be right. The bars show how many were, the dashed line "
    yield f"how many should have been. They are {gap} apart on average (the expected calibration "
    yield f"error, ECE; 0% is best). Faint bars stand for few {counted}.</p>\n"
    svg = charts.reliability(bins, "accuracy by confidence", counted)
    rows = (
        [
            f"{each['from']:.0%} to {each['to']:.0%}",
            f"{each['images']:,}",
            _percent(each["accuracy"]),
        ]
        for each in bins
    )
    table = _table(["confidence", counted, "right"], rows)
    yield f'<div class="pair">{_card("Accuracy by confidence", svg)}{table}</div>\n'


def _mistakes(mistakes: Sequence[Mistake]) -> Iterator[str]:
    title = "Worst mistakes" if any(each.wrong for each in mistakes) else "The least certain images"
    yield f"<h2>{title}</h2>\n<p>The images whose true labels got the lowest probabilities."
    if mistakes[0].attention is not None:
        yield " Beside each is where the head looked, from dark (least) to light (most)."
    yield '</p>\n<div class="sheet">\n'
    for each in mistakes:
        images = [each.photo] if each.attention is None else [each.photo, each.attention]
        looks = "".join(f'<img alt="" src="{inlined(image)}">' for image in images)
        yield f'<figure><div class="looks">{looks}</div><figcaption>'
        yield f"<b>is {shown(each.truth)}{'' if each.wrong else ' (right)'}</b>"
        yield f"<br>said {shown(each.said)}<br>{_path(each.path)}</figcaption></figure>\n"
    yield "</div>\n"


def _card(title: str, content: str) -> str:
    return f'<div class="card"><h3>{title}</h3>{content}</div>\n'


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "") -> str:
    """A table of cells that are markup already."""
    head = "".join(f"<th>{shown(name)}</th>" for name in columns)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return _scroll(head, body, kind)


def _scroll(head: str, body: str, kind: str) -> str:
    return (
        f'<div class="scroll"><table class="{kind}"><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>\n"
    )


def _meter(share: float | None) -> str:
    """A bar and the number, which takes the same room whatever it is."""
    bar = f'<span class="meter"><i style="width:{100 * (share or 0):.0f}%"></i></span>'
    return f'{bar}<span class="number">{_share(share)}</span>'


def _share(value: float | None) -> str:
    return "-" if value is None else _percent(value)


def _percent(value: float) -> str:
    return f"{value:.1%}"


def _path(path: str) -> str:
    """A path whose parts keep their order where some are written from right to left."""
    return "/".join(f"<bdi>{shown(part)}</bdi>" for part in path.split("/"))
