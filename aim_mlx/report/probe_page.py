"""The report of a probe: one HTML page, complete in itself: what it can do and where it fails."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from aim_mlx.files import disk_errors, publish
from aim_mlx.report import charts
from aim_mlx.report.charts import Curve
from aim_mlx.report.page import END, begin, inlined, shown

_LARGEST_TABLE = 20  # classes whose confusions are numbers; more become a picture
_SHORT = 6  # letters of a name
_LARGEST_MAP = 200  # classes of the picture; of more, those that are confused most
_CONFUSIONS = 20  # listed

_STYLE = """
:root { --good: #2f9e63; --bad: #d4553f }
@media (prefers-color-scheme: dark) { :root { --good: #4cbf82; --bad: #ee7a63 } }
body { max-width: 1120px }
.tiles { display: grid; gap: .75rem; margin: 1.1rem 0;
  grid-template-columns: repeat(auto-fit, minmax(min(10.5rem, 44vw), 1fr)) }
.tile, .card, .warning { background: var(--card); border: 1px solid var(--line);
  border-radius: .6rem; padding: .75rem .9rem; min-width: 0 }
.tile b { display: block; font-size: 1.55rem; font-weight: 650; line-height: 1.25;
  font-variant-numeric: tabular-nums; overflow-wrap: anywhere }
.tile span, .card > span { color: var(--soft); font-size: .85rem }
.warning { border-left: .3rem solid var(--bad); margin-top: .6rem }
.pair { display: grid; gap: .75rem; margin-top: .8rem;
  grid-template-columns: repeat(auto-fit, minmax(min(22rem, 100%), 1fr)) }
.card h3 { font-size: .95rem; margin: 0 0 .5rem; overflow-wrap: anywhere }
.scroll { overflow: auto; max-height: 32rem; background: var(--card);
  border: 1px solid var(--line); border-radius: .6rem; margin-top: .8rem }
.pair > .scroll { margin-top: 0; align-self: start }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th, td { padding: .35rem .7rem; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--line) }
th { position: sticky; top: 0; background: var(--card); font-weight: 600; color: var(--soft);
  font-size: .85rem; z-index: 1 }
tbody th { position: static; color: var(--text); font-size: inherit; font-weight: 400 }
.name { text-align: left; white-space: normal; overflow-wrap: anywhere; min-width: 7rem }
tr:last-child > * { border-bottom: 0 }
.map { max-width: 52rem }
.meter { display: inline-block; width: 4.5rem; height: .5rem; border-radius: .25rem;
  margin-right: .5rem; background: var(--empty); overflow: hidden }
.number { display: inline-block; min-width: 4.2em }
.meter i { display: block; height: 100%; background: var(--bar) }
.cells { width: auto }
.cells tbody th { position: sticky; left: 0; background: var(--card) }
.cells td { text-align: center; border: 1px solid var(--line); min-width: 2.6rem }
.hit { background: color-mix(in srgb, var(--good) calc(var(--s) * 75%), transparent) }
.miss { background: color-mix(in srgb, var(--bad) calc(20% + var(--s) * 70%), transparent) }
.chosen { font-weight: 650 }
.chosen .name::after { content: " (chosen)"; color: var(--bar) }
.sheet { display: grid; gap: .75rem; margin-top: .8rem;
  grid-template-columns: repeat(auto-fill, minmax(min(17rem, 100%), 1fr)) }
figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: .6rem;
  overflow: hidden }
.looks { display: flex }
.looks img { display: block; width: 50%; aspect-ratio: 1; object-fit: contain;
  background: var(--empty) }
.looks img:only-child { width: 100% }
figcaption { padding: .55rem .7rem .65rem; font-size: .85rem; color: var(--soft);
  overflow-wrap: anywhere }
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
class Report:
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
    mistakes: Sequence[Mistake] = field(default=())


def write_report(target: Path, report: Report) -> None:
    """Writes the page, complete or not at all; raises OutputError."""
    with disk_errors("write", target):
        publish({target: lambda file: file.write("".join(_page(report)).encode())})


def _page(report: Report) -> Iterator[str]:
    yield begin(report.title, _STYLE + charts.STYLE)
    yield f"<header><h1>{shown(report.title)}</h1></header>\n"
    yield from (f'<p class="warning">{shown(text)}</p>\n' for text in report.warnings)
    yield _tiles(report)
    yield _facts(report.facts)
    yield from _learning(report)
    yield from _classes(report.figures)
    if report.confusion is not None:
        yield from _confusion(report.confusion, [c["name"] for c in report.figures["classes"]])
    yield from _calibration(report.figures)
    yield from _mistakes(report.mistakes)
    yield END


def _tiles(report: Report) -> str:
    figures = report.figures
    several = "exact_match" in figures
    name = "exact_match" if several else "accuracy"
    low, high = figures[f"{name}_interval"]
    of = f"{figures['images']:,} images of {report.split}"
    tiles = [
        (_percent(figures[name]), f"{name.replace('_', ' ')}, {of}"),
        (f"{_percent(low)} to {_percent(high)}", "where it lies, with 95% confidence"),
    ]
    if several:
        tiles += [
            (_percent(figures["mean_average_precision"]), "mean average precision"),
            (_percent(figures["macro_f1"]), "F1, mean of the classes"),
        ]
    else:
        tiles += [
            (_percent(figures["balanced_accuracy"]), "balanced accuracy: mean of the classes"),
            (_percent(figures["majority"]), "by always saying the largest class"),
        ]
        if "top5_accuracy" in figures:
            tiles.append((_percent(figures["top5_accuracy"]), "right class among the first five"))
    tiles.append((_percent(figures["ece"]), "mean gap of confidence and accuracy (ECE)"))
    boxes = "".join(
        f'<div class="tile"><b>{shown(value)}</b><span>{shown(what)}</span></div>'
        for value, what in tiles
    )
    return f'<div class="tiles">{boxes}</div>\n'


def _facts(facts: Sequence[tuple[str, str]]) -> str:
    rows = "".join(f"<dt>{shown(name)}</dt><dd>{shown(value)}</dd>" for name, value in facts)
    return f'<div class="card"><h3>How it was made</h3><dl>{rows}</dl></div>\n' if facts else ""


def _learning(report: Report) -> Iterator[str]:
    if not report.heads:
        return
    yield "<h2>Learning</h2>\n<p>One line for each head of the grid, on val; the chosen one stands "
    yield "out.</p>\n"
    drawn = [
        ("Score on val", charts.curves(report.scores, "score on val by epoch", True)),
        ("Loss on val", charts.curves(report.losses, "loss on val by epoch")),
    ]
    cards = "".join(f'<div class="card"><h3>{name}</h3>{svg}</div>' for name, svg in drawn if svg)
    yield f'<div class="pair">{cards}</div>\n'
    names = [name for name in report.heads[0] if name != "chosen"]
    head = "".join(f"<th{_first(i)}>{shown(name)}</th>" for i, name in enumerate(names))
    body = "".join(
        f"<tr{' class=chosen' * bool(row.get('chosen'))}>"
        + "".join(f"<td{_first(i)}>{shown(str(row[name]))}</td>" for i, name in enumerate(names))
        + "</tr>"
        for row in report.heads
    )
    yield _table(head, body)


def _classes(figures: Mapping[str, Any]) -> Iterator[str]:
    """A row for each class, the worst first, with its number where the confusions have numbers."""
    several, each_class = "exact_match" in figures, figures["classes"]
    numbered = not several and _numbered([each["name"] for each in each_class])
    yield "<h2>Classes</h2>\n<p>The worst first. Recall: how many images of a class were found; "
    yield "precision: how many of those taken for it are of it."
    if numbered:
        yield " The number is the one by which the confusions name a class."
    yield "</p>\n"
    rows = sorted(
        enumerate(each_class, 1),
        key=lambda each: (each[1]["recall"] is None, each[1]["recall"] or 0.0, each[0]),
    )
    head = '<th class="name">class</th><th>images</th><th>recall</th><th>precision</th><th>F1</th>'
    head = "<th>number</th>" * numbered + head + "<th>average precision</th>" * several
    body = "".join(
        "<tr>"
        + (f"<td>{number}</td>" if numbered else "")
        + f'<td class="name">{shown(each["name"])}</td>'
        f"<td>{each['images']:,}</td><td>{_meter(each['recall'])}</td>"
        f"<td>{_share(each['precision'])}</td><td>{_share(each['f1'])}</td>"
        + (f"<td>{_share(each['average_precision'])}</td>" if several else "")
        + "</tr>"
        for number, each in rows
    )
    yield _table(head, body)


def _numbered(names: Sequence[str]) -> bool:
    """Whether the confusions name classes by numbers: for many of them, or long names."""
    return len(names) > _LARGEST_TABLE or max(map(len, names)) > _SHORT


def _confusion(table: np.ndarray, names: Sequence[str]) -> Iterator[str]:
    yield "<h2>Confusions</h2>\n"
    if len(names) <= _LARGEST_TABLE:
        yield "<p>Rows: what the images are. Columns: what they were taken for.</p>\n"
        yield _cells(table, names)
    else:
        kept = _most_confused(table)
        if len(kept) < len(names):
            yield f"<p>The {len(kept)} of {len(names)} classes that are confused most.</p>\n"
        part, found = table[np.ix_(kept, kept)], [names[i] for i in kept]
        numbers = [i + 1 for i in kept]  # as in the table of classes
        yield "<p>Rows: what the images are. Columns: what they were taken for. Green is right, "
        yield "red is wrong; a full colour is all of the class. Names appear on hovering.</p>\n"
        drawn = charts.confusion_map(part, found, numbers, "confusions")
        yield f'<div class="card map">{drawn}</div>\n'
    wrong = np.where(np.eye(len(table), dtype=bool), 0, table)
    order = [i for i in np.argsort(-wrong, axis=None, kind="stable")[:_CONFUSIONS] if wrong.flat[i]]
    if order:
        body = ""
        for i, j in (divmod(int(place), len(table)) for place in order):
            body += f'<tr><td class="name">{shown(names[i])}</td><td class="name">{shown(names[j])}'
            body += f"</td><td>{table[i, j]:,} of {table[i].sum():,}</td></tr>"
        yield _table('<th class="name">is</th><th class="name">taken for</th><th>images</th>', body)


def _most_confused(table: np.ndarray) -> list[int]:
    """The classes with most wrong images in row and column, in their own order."""
    wrong = table.sum(axis=0) + table.sum(axis=1) - 2 * np.diag(table)
    return sorted(np.argsort(-wrong, kind="stable")[:_LARGEST_MAP].tolist())


def _cells(table: np.ndarray, names: Sequence[str]) -> str:
    sums = np.maximum(table.sum(axis=1), 1)
    # Short names stand above the columns; long ones would make them too wide and have a number.
    short = not _numbered(names)
    above = names if short else range(1, len(names) + 1)
    head = '<th class="name">class</th>' + "".join(
        f'<th title="{shown(name)}">{shown(str(top))}</th>'
        for top, name in zip(above, names, strict=True)
    )
    body = ""
    for i, name in enumerate(names):
        body += f'<tr><th class="name">{shown(name if short else f"{i + 1} {name}")}</th>'
        for j, count in enumerate(table[i]):
            kind = "hit" if i == j else "miss"
            style = f' class="{kind}" style="--s:{count / sums[i]:.3f}"' if count else ""
            body += f"<td{style}>{f'{count:,}' if count else ''}</td>"
        body += "</tr>"
    return _table(head, body, "cells")


def _calibration(figures: Mapping[str, Any]) -> Iterator[str]:
    # With several labels each class of each image is a decision of its own.
    counted = "decisions" if "exact_match" in figures else "images"
    yield "<h2>Calibration</h2>\n<p>Whether confidence can be believed: of all that it says with "
    yield "80%, eight in ten should be right. A bar shows how many were, the dashed line how many "
    gap = _percent(figures["ece"])
    yield f"should have been. The two are {gap} apart on average (the expected calibration error, "
    yield f"ECE; 0% is best). Faint bars are of few {counted}.</p>\n"
    svg = charts.reliability(figures["calibration"], "accuracy by confidence", counted)
    yield f'<div class="pair"><div class="card"><h3>Accuracy by confidence</h3>{svg}</div>'
    rows = "".join(
        f"<tr><td>{each['from']:.0%} to {each['to']:.0%}</td><td>{each['images']:,}</td>"
        f"<td>{each['accuracy']:.1%}</td></tr>"
        for each in figures["calibration"]
    )
    yield _table(f"<th>confidence</th><th>{counted}</th><th>right</th>", rows) + "</div>\n"


def _mistakes(mistakes: Sequence[Mistake]) -> Iterator[str]:
    if not mistakes:
        return
    title = "Worst mistakes" if any(each.wrong for each in mistakes) else "The least certain images"
    yield f"<h2>{title}</h2>\n<p>Those with the least probability for what they are."
    if mistakes[0].attention is not None:
        yield " Beside each, where the head looked: from dark for least to light for most."
    yield "</p>\n"
    yield '<div class="sheet">\n'
    for each in mistakes:
        images = [each.photo] if each.attention is None else [each.photo, each.attention]
        looks = "".join(f'<img alt="" src="{inlined(image)}">' for image in images)
        mark = "" if each.wrong else " (right)"
        yield f'<figure><div class="looks">{looks}</div><figcaption>'
        yield f"<b>is {shown(each.truth)}{mark}</b>"
        yield f"<br>said {shown(each.said)}<br>{_path(each.path)}</figcaption></figure>\n"
    yield "</div>\n"


def _table(head: str, body: str, kind: str = "") -> str:
    return (
        f'<div class="scroll"><table class="{kind}"><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>\n"
    )


def _first(column: int) -> str:
    return ' class="name"' if column == 0 else ""


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
