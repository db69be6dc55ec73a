"""What a verification found, as numbers, and how it is written for people and for programs."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aim_mlx.files import disk_errors, publish

BAR = 1e-4  # of the scale of each value, see Difference


@dataclass(frozen=True)
class Difference:
    """How far one output is from the reference's: largest and mean absolute difference.

    `size` is the root mean square of the reference. `of_bar` is the largest difference in units of
    BAR x scale, where a value's scale is `size`, or its own magnitude if that is larger: a float32
    sum cannot be closer than its own rounding.
    """

    name: str
    size: float
    largest: float
    mean: float
    of_bar: float


def difference(name: str, actual: np.ndarray, expected: np.ndarray) -> Difference:
    """Compares two outputs of the same shape; `of_bar` is infinite where either is not finite."""
    if actual.shape != expected.shape:
        raise ValueError(f"{name}: shapes {actual.shape} and {expected.shape}")
    actual, expected = actual.astype(np.float64), expected.astype(np.float64)
    if not (np.isfinite(actual).all() and np.isfinite(expected).all()):
        return Difference(name, *[float("inf")] * 4)
    size = float(np.sqrt((expected**2).mean()))
    apart = np.abs(actual - expected)
    scale = np.maximum(np.maximum(np.abs(expected), size), np.finfo(np.float32).tiny)
    return Difference(
        name, size, float(apart.max()), float(apart.mean()), float((apart / scale).max() / BAR)
    )


@dataclass(frozen=True)
class Comparison:
    """All outputs in one dtype; `cosines` are those of the mean-pooled embeddings, one an image."""

    dtype: str
    outputs: tuple[Difference, ...]
    cosines: tuple[float, ...]

    @property
    def worst(self) -> Difference:
        return max(self.outputs, key=lambda d: d.of_bar)


@dataclass(frozen=True)
class Report:
    """A verification: what was compared, and how it came out.

    `facts` are the circumstances, in words. `changed` names tensors of the destination that are
    not the source's in the destination's dtype. The first comparison is float32's, which decides.
    """

    facts: Mapping[str, str]
    tensors: int
    changed: tuple[str, ...]
    comparisons: tuple[Comparison, ...]

    @property
    def passed(self) -> bool:
        exact = self.comparisons[0].worst.of_bar <= 1
        return exact and not self.changed and self._finite

    @property
    def _finite(self) -> bool:
        return all(np.isfinite(c.worst.of_bar) for c in self.comparisons)

    @property
    def verdict(self) -> str:
        """One line: whether it passed, by how much, and what was compared."""
        worst = self.comparisons[0].worst
        what = f"{len(self.comparisons[0].outputs)} outputs and {self.tensors} stored tensors"
        if self.changed:
            first, *rest = self.changed
            more = f" and {len(rest)} more" if rest else ""
            return f"FAIL: stored tensor {first}{more} is not the source's"
        if not self._finite:
            dtype = next(c.dtype for c in self.comparisons if not np.isfinite(c.worst.of_bar))
            return f"FAIL: outputs in {dtype} are not finite"
        return (
            f"{'PASS' if self.passed else 'FAIL'}: float32 differs from PyTorch by "
            f"{worst.of_bar * BAR:.1e} x scale at most, at {worst.name} "
            f"({'within' if self.passed else 'over'} the bar of {BAR:g}); compared: {what}"
        )


def markdown(report: Report) -> str:
    """The report as a page: verdict, circumstances, one table a dtype."""
    lines = ["# Parity report", "", f"**{report.verdict}**", ""]
    lines += [f"- {name}: {value}" for name, value in report.facts.items()]
    state = f"{len(report.changed)} differ" if report.changed else "all equal bit for bit"
    lines += [f"- stored tensors, against the source's cast to the same dtype: {state}", ""]
    for comparison in report.comparisons:
        lines += _table(comparison)
    lines += [
        f"`of bar` is the largest difference in units of {BAR:g} x scale, where the scale of a "
        "value is the root mean square of that output (`size`), or the value's own magnitude if "
        "that is larger. The verdict is that of float32, whose `of bar` must not exceed 1.",
    ]
    return "\n".join(lines) + "\n"


def _table(comparison: Comparison) -> list[str]:
    cosines = ", ".join(f"{1 - c:.1e}" for c in comparison.cosines)
    rows = [
        f"| {d.name} | {d.size:.3g} | {d.largest:.1e} | {d.mean:.1e} | {d.of_bar:.3f} |"
        for d in comparison.outputs
    ]
    return [
        f"## {comparison.dtype} against PyTorch in float32",
        "",
        "| output | size | largest difference | mean difference | of bar |",
        "|---|---|---|---|---|",
        *rows,
        "",
        f"1 - cosine of the mean-pooled embeddings, one an image: {cosines}",
        "",
    ]


def as_json(report: Report) -> str:
    """The same as one JSON object; numbers that are not finite become null."""
    values: dict[str, Any] = {
        "passed": report.passed,
        "verdict": report.verdict,
        "bar": BAR,
        **asdict(report),
    }
    return json.dumps(_finite(values), indent=1, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def report_paths(folder: Path, stated: Path | None) -> tuple[Path, Path]:
    """Markdown and JSON: beside the destination, or as stated (the suffix is set for each)."""
    stem = stated.with_suffix("") if stated and stated.suffix in (".md", ".json") else stated
    stem = stem or folder.absolute().parent / f"{folder.absolute().name}.parity"
    return stem.parent / f"{stem.name}.md", stem.parent / f"{stem.name}.json"


def write_report(report: Report, paths: tuple[Path, Path]) -> None:
    """Writes both forms, each whole or not at all; raises OutputError."""
    texts = dict(zip(paths, (markdown(report), as_json(report)), strict=True))
    with disk_errors("write", paths[0], "give another place with --report"):
        publish({path: text.encode() for path, text in texts.items()})
