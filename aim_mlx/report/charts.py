"""Charts as inline SVG: no scripts, colours from the page, numbers on hovering."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from aim_mlx.report.page import shown

_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 506, 14, 260  # where the axes end, in a plot of 520 x 300

STYLE = """
svg { display: block; width: 100%; height: auto; overflow: visible }
svg text { font: 12px system-ui, -apple-system, "Segoe UI", sans-serif; fill: var(--soft) }
.grid { stroke: var(--line) }
.axis { stroke: var(--soft) }
.curve { fill: none; stroke: var(--soft); stroke-width: 1.2; opacity: .38 }
.best { fill: none; stroke: var(--bar); stroke-width: 2.6; stroke-linejoin: round }
.dot, .share { fill: var(--bar) }
.ideal { stroke: var(--soft); stroke-width: 1.2; stroke-dasharray: 4 4 }
.right { fill: var(--good) }
.wrong { fill: var(--bad) }
.field { fill: var(--empty) }
@media (max-width: 32rem) { svg text { font-size: 17px } }
"""


@dataclass(frozen=True)
class Curve:
    """Values by epoch or another count from 1; None where there is none."""

    name: str
    values: Sequence[float | None]
    best: bool = False


def curves(lines: Sequence[Curve], title: str, percent: bool = False, across: str = "epoch") -> str:
    """Curves over what `across` names, the best one in front with its last value marked."""
    values = [value for line in lines for value in line.values if value is not None]
    if not values:
        return ""
    places = _ticks(1, max(2, *(len(line.values) for line in lines)), least=1)
    up, number = _ticks(min(values), max(values)), "{:.3g}"
    if percent:  # with the digits that tell the ticks apart
        number = "{:.0%}" if up[1] - up[0] >= 0.0099 else "{:.1%}"
    plot = _Plot(places, up, across, "{:.0f}", number)
    for line in sorted(lines, key=lambda line: line.best):
        points = [
            f"{plot.x(epoch):.1f},{plot.y(value):.1f}"
            for epoch, value in enumerate(line.values, 1)
            if value is not None
        ]
        kind, tip = "best" if line.best else "curve", f"<title>{shown(line.name)}</title>"
        plot.parts.append(f'<polyline class="{kind}" points="{" ".join(points)}">{tip}</polyline>')
        if line.best and points:
            x, y = points[-1].split(",")
            plot.parts.append(f'<circle class="dot" cx="{x}" cy="{y}" r="3.5"/>')
    return _svg(plot.parts, title)


def reliability(bins: Sequence[Mapping[str, Any]], title: str, counted: str = "images") -> str:
    """Accuracy in each bin of confidence; faint bins hold few of what is counted."""
    quarters = [0.0, 0.25, 0.5, 0.75, 1.0]
    plot = _Plot(quarters, quarters, "confidence", "{:.0%}", "{:.0%}")
    most = max(each["images"] for each in bins)
    for each in bins:
        left, right, top = plot.x(each["from"]), plot.x(each["to"]), plot.y(each["accuracy"])
        height = max(_BOTTOM - top, 1.5)
        tip = (
            f"{each['images']:,} {counted}, confidence {each['confidence']:.1%}, "
            f"accuracy {each['accuracy']:.1%}"
        )
        opacity = 0.25 + 0.75 * (each["images"] / most) ** 0.5
        plot.parts.append(_box("share", left + 1, top, right - left - 2, height, tip, opacity))
    plot.parts.append(_line("ideal", _LEFT, _BOTTOM, _RIGHT, _TOP))
    return _svg(plot.parts, title)


def confusion_map(
    table: np.ndarray, classes: Sequence[str], numbers: Sequence[int], title: str
) -> str:
    """A square for each pair of classes that occurs, the numbers of some classes beside it."""
    count, side, left, top = len(table), 600, 34, 22
    cell = side / count
    parts = [f'<rect class="field" x="{left}" y="{top}" width="{side}" height="{side}"/>']
    step = max(1, 10 * round(count / 100)) if count > 30 else 5
    for i in range(0, count, step):
        middle = (i + 0.5) * cell
        parts.append(_text(left - 5, top + middle + 4, str(numbers[i]), "end"))
        parts.append(_text(left + middle, top - 7, str(numbers[i])))
    sums = np.maximum(table.sum(axis=1), 1)
    for i, j in zip(*np.nonzero(table), strict=True):
        tip = f"{classes[i]} taken for {classes[j]}: {table[i, j]:,} of {sums[i]:,}"
        opacity = 0.3 + 0.7 * table[i, j] / sums[i]
        kind = "right" if i == j else "wrong"
        parts.append(_box(kind, left + j * cell, top + i * cell, cell, cell, tip, opacity))
    return _svg(parts, title, left + side + 4, top + side + 4)


class _Plot:
    """A frame with a grid and numbered axes; `x` and `y` say where values lie in it."""

    def __init__(
        self, across: Sequence[float], up: Sequence[float], name: str, x_format: str, y_format: str
    ):
        self._across, self._up = across, up
        self.parts = []
        for value in up:
            y = self.y(value)
            self.parts.append(_line("grid", _LEFT, y, _RIGHT, y))
            self.parts.append(_text(_LEFT - 7, y + 4, y_format.format(value), "end"))
        for value in across:
            self.parts.append(_text(self.x(value), _BOTTOM + 17, x_format.format(value)))
        self.parts.append(_line("axis", _LEFT, _BOTTOM, _RIGHT, _BOTTOM))
        self.parts.append(_text((_LEFT + _RIGHT) / 2, _BOTTOM + 35, name))

    def x(self, value: float) -> float:
        return float(np.interp(value, [self._across[0], self._across[-1]], [_LEFT, _RIGHT]))

    def y(self, value: float) -> float:
        return float(np.interp(value, [self._up[0], self._up[-1]], [_BOTTOM, _TOP]))


def _ticks(low: float, high: float, least: float = 2e-4) -> list[float]:
    """Round numbers from below one value to above another, some four steps of at least `least`."""
    raw = max((high - low) / 4, abs(high) / 200, least)
    power = 10.0 ** math.floor(math.log10(raw))
    step = power * min((1, 2, 5, 10), key=lambda n: abs(n * power - raw))
    last = math.ceil(high / step)
    first = min(math.floor(low / step), max(last - 1, 0))
    return [step * n for n in range(first, max(last, first + 1) + 1)]


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, text: str, anchor: str = "middle") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{shown(text)}</text>'


def _box(
    kind: str, x: float, y: float, width: float, height: float, tip: str, opacity: float
) -> str:
    return (
        f'<rect class="{kind}" x="{x:.2f}" y="{y:.2f}" width="{width:.2f}" height="{height:.2f}" '
        f'opacity="{opacity:.2f}"><title>{shown(tip)}</title></rect>'
    )


def _svg(parts: Sequence[str], title: str, width: float = 520, height: float = 300) -> str:
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{shown(title)}">'
        f"{''.join(parts)}</svg>"
    )
