"""Charts as inline SVG: no scripts, colours from the page, numbers on hovering."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from aim_mlx.report.page import shown

_WIDTH, _HEIGHT = 520, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 14, 40

STYLE = """
svg { display: block; width: 100%; height: auto; overflow: visible }
svg text { font: 12px system-ui, -apple-system, "Segoe UI", sans-serif; fill: var(--soft) }
.grid { stroke: var(--line); stroke-width: 1 }
.axis { stroke: var(--soft); stroke-width: 1 }
.curve { fill: none; stroke: var(--soft); stroke-width: 1.2; opacity: .38 }
.best { fill: none; stroke: var(--bar); stroke-width: 2.6; stroke-linejoin: round }
.dot { fill: var(--bar) }
.ideal { stroke: var(--soft); stroke-width: 1.2; stroke-dasharray: 4 4 }
.share { fill: var(--bar) }
.right { fill: var(--good) }
.wrong { fill: var(--bad) }
.field { fill: var(--empty) }
@media (max-width: 32rem) { svg text { font-size: 17px } }
"""


@dataclass(frozen=True)
class Curve:
    """Values by epoch, from epoch 1; None where there is none."""

    name: str
    values: Sequence[float | None]
    best: bool = False


def curves(lines: Sequence[Curve], title: str, percent: bool = False) -> str:
    """Curves over the epochs, the best one in front with its last and best values marked."""
    found = [value for line in lines for value in line.values if value is not None]
    if not found:
        return ""
    epochs = max(len(line.values) for line in lines)
    axis = _Axis.around(min(found), max(found), (0.0, 1.0) if percent else (0.0, None))
    across = _Axis.whole(epochs)

    def points(line: Curve) -> list[tuple[float, float]]:
        return [
            (
                across.place(epoch, _LEFT, _WIDTH - _RIGHT),
                axis.place(value, _HEIGHT - _BOTTOM, _TOP),
            )
            for epoch, value in enumerate(line.values, 1)
            if value is not None
        ]

    parts = [_frame(across, axis, "epoch", percent)]
    for line in sorted(lines, key=lambda line: line.best):
        kind, drawn = "best" if line.best else "curve", points(line)
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in drawn)
        parts.append(
            f'<polyline class="{kind}" points="{path}"><title>{shown(line.name)}</title></polyline>'
        )
        if line.best and drawn:
            x, y = drawn[-1]
            parts.append(f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>')
    return _svg(parts, title)


def reliability(bins: Sequence[Mapping[str, Any]], title: str, counted: str = "images") -> str:
    """Accuracy in each bin of confidence; faint bins hold few of what is counted."""
    axis = _Axis(0.0, 1.0, (0.0, 0.25, 0.5, 0.75, 1.0))
    most = max(each["images"] for each in bins)
    low, high = _HEIGHT - _BOTTOM, _TOP
    parts = [_frame(axis, axis, "confidence", True, percent_across=True)]
    for each in bins:
        left, right = (axis.place(each[end], _LEFT, _WIDTH - _RIGHT) for end in ("from", "to"))
        top = axis.place(each["accuracy"], low, high)
        opacity = 0.25 + 0.75 * (each["images"] / most) ** 0.5
        label = (
            f"{each['images']:,} {counted}, confidence {each['confidence']:.1%}, "
            f"accuracy {each['accuracy']:.1%}"
        )
        parts.append(
            f'<rect class="share" x="{left + 1:.1f}" y="{top:.1f}" width="{right - left - 2:.1f}" '
            f'height="{max(low - top, 1.5):.1f}" opacity="{opacity:.2f}">'
            f"<title>{label}</title></rect>"
        )
    ends = [axis.place(v, _LEFT, _WIDTH - _RIGHT) for v in (0, 1)]
    parts.append(f'<line class="ideal" x1="{ends[0]}" y1="{low}" x2="{ends[1]}" y2="{high}"/>')
    return _svg(parts, title)


def confusion_map(
    table: np.ndarray, classes: Sequence[str], numbers: Sequence[int], title: str
) -> str:
    """A square for each pair of classes that occurs, the numbers of some classes beside it."""
    count = len(table)
    side, left, top = 600, 34, 22
    cell = side / count
    sums = np.maximum(table.sum(axis=1), 1)
    parts = [f'<rect class="field" x="{left}" y="{top}" width="{side}" height="{side}"/>']
    step = max(1, 10 * round(count / 100)) if count > 30 else 5
    for i in range(0, count, step):
        middle = (i + 0.5) * cell
        parts.append(
            f'<text x="{left - 5}" y="{top + middle + 4:.1f}" text-anchor="end">{numbers[i]}</text>'
            f'<text x="{left + middle:.1f}" y="{top - 7}" text-anchor="middle">{numbers[i]}</text>'
        )
    for i, j in zip(*np.nonzero(table), strict=True):
        kind = "right" if i == j else "wrong"
        share = table[i, j] / sums[i]
        label = f"{classes[i]} taken for {classes[j]}: {table[i, j]:,} of {sums[i]:,}"
        parts.append(
            f'<rect class="{kind}" x="{left + j * cell:.2f}" y="{top + i * cell:.2f}" '
            f'width="{cell:.2f}" height="{cell:.2f}" opacity="{0.3 + 0.7 * share:.2f}">'
            f"<title>{shown(label)}</title></rect>"
        )
    return _svg(parts, title, left + side + 4, top + side + 4)


@dataclass(frozen=True)
class _Axis:
    low: float
    high: float
    ticks: tuple[float, ...]

    @classmethod
    def around(cls, low: float, high: float, bounds: tuple[float, float | None]) -> "_Axis":
        """A range with round ticks that holds these values, within the bounds."""
        span = max(high - low, abs(high) * 0.02, 1e-3)
        raw = span / 4
        power = 10.0 ** np.floor(np.log10(raw))
        step = float(power * min((1, 2, 5, 10), key=lambda n: abs(n * power - raw)))
        first = max(bounds[0], float(np.floor(low / step) * step))
        last = float(np.ceil(high / step) * step)
        last = last if bounds[1] is None else min(bounds[1], last)
        last = max(last, first + step)
        return cls(first, last, tuple(np.arange(first, last + step / 2, step).tolist()))

    @classmethod
    def whole(cls, count: int) -> "_Axis":
        """1 to a count, with a few whole numbers marked."""
        step = max(1, -(-count // 6))
        step = next(n for n in (1, 2, 5, 10, 20, 25, 50, 100, 10**9) if n >= step)
        ticks = [1, *range(step, count + 1, step)] if step > 1 else range(1, count + 1)
        return cls(1, max(count, 2), tuple(dict.fromkeys(map(float, ticks))))

    def place(self, value: float, start: float, end: float) -> float:
        return start + (value - self.low) / (self.high - self.low) * (end - start)


def _frame(across: _Axis, up: _Axis, name: str, percent: bool, percent_across: bool = False) -> str:
    """Grid, axes and their numbers."""
    low, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    parts = []
    for value in up.ticks:
        y = up.place(value, low, _TOP)
        label = f"{value:.{_digits(up)}%}" if percent else f"{value:.3g}"
        parts.append(f'<line class="grid" x1="{_LEFT}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{label}</text>')
    for value in across.ticks:
        x = across.place(value, _LEFT, right)
        label = f"{value:.0%}" if percent_across else f"{value:.0f}"
        parts.append(f'<text x="{x:.1f}" y="{low + 17}" text-anchor="middle">{label}</text>')
    parts.append(f'<line class="axis" x1="{_LEFT}" y1="{low}" x2="{right}" y2="{low}"/>')
    middle = (_LEFT + right) / 2
    parts.append(f'<text x="{middle}" y="{_HEIGHT - 5}" text-anchor="middle">{name}</text>')
    return "".join(parts)


def _digits(axis: _Axis) -> int:
    """Digits that tell the ticks of a percentage apart."""
    return 0 if axis.ticks[1] - axis.ticks[0] >= 0.0099 else 1


def _svg(parts: Sequence[str], title: str, width: float = _WIDTH, height: float = _HEIGHT) -> str:
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{shown(title)}">'
        f"{''.join(parts)}</svg>"
    )
