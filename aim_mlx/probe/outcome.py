"""What a training of a classifier is, what it leaves in its folder, and what it says of itself.

FOLDER/probe.safetensors, probe.json    the head; see head_files
FOLDER/splits.jsonl                     every image with its classes, split and digest
FOLDER/report.html                      what it can do and where it fails
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from aim_mlx.config import to_dict
from aim_mlx.data.labelled import Data
from aim_mlx.data.parts import Part
from aim_mlx.data.splits import DataSet
from aim_mlx.encoder.encoder import Encoder
from aim_mlx.errors import UNTRAINED
from aim_mlx.probe.probe import AttentiveProbe
from aim_mlx.probe.summary import Measured
from aim_mlx.report.probe_page import ProbeReport, write_report
from aim_mlx.training.folder import write_lines
from aim_mlx.training.report import Report, pass_on

SPLITS_FILE, REPORT_FILE = "splits.jsonl", "report.html"


@dataclass(frozen=True)
class TrainedProbe:
    """The outcome of a run; `figures` are those of `measured_on`, "test" where there is one."""

    output: str
    classes: int
    images: dict[str, int]
    skipped: int
    epochs: int
    best: dict[str, Any]
    measured_on: str
    figures: dict[str, Any]
    warnings: tuple[str, ...]
    seconds: float

    @classmethod
    def of(
        cls,
        folder: Path,
        probe: AttentiveProbe,
        images: DataSet,
        measured: Measured,
        epochs: int,
        warnings: Sequence[str],
        started: float,
        **more: Any,
    ) -> Self:
        """That of a run which began at a time of `time.monotonic`."""
        return cls(
            str(folder),
            len(images.classes),
            {name: len(part) for name, part in images.parts.items()},
            len(images.skips),
            epochs,
            probe.metrics["validation"],
            measured.name,
            measured.figures,
            tuple(warnings if probe.encoder.trained else [UNTRAINED, *warnings]),
            round(time.monotonic() - started, 3),
            **more,
        )

    @property
    def exit_code(self) -> int:
        return 3 if self.skipped else 0


def what_decides(
    config: Any, more: Mapping[str, Any], encoder: Encoder, images: DataSet
) -> dict[str, Any]:
    """All that decides a run's result; what there is most of stands last."""
    return {
        **{name.replace("_", " "): value for name, value in asdict(config).items()},
        **more,
        "weights": encoder.weights_digest,
        "encoder": to_dict(encoder.model.config),
        "preprocessing": to_dict(encoder.preprocessing),
        "data set": images.digest(),
    }


def described(
    data: Data, images: DataSet, encoder: Encoder, more: Mapping[str, str], seed: int
) -> dict[str, str]:
    """How a classifier was made, in words."""
    counts = ", ".join(f"{len(part):,} {name}" for name, part in images.parts.items())
    left, digest = len(images.skips), encoder.weights_digest[:16]
    return {
        "data": f"{data.source}: {len(images.classes)} classes, {counts}; {left} left out",
        "encoder": f"{encoder.identity.get('model')}, weights {digest}",
        **more,
        "seed": str(seed),
    }


def measured_parts(
    probe: AttentiveProbe,
    images: DataSet,
    measure: Callable[[str, Part], Measured],
    report: Report,
) -> Measured:
    """Gives a probe its figures on val and on test, where there is one; those of the last."""
    found = [measure(name, images.parts[name]) for name in ("val", "test") if name in images.parts]
    probe.metrics |= {each.name: each.figures for each in found}
    pass_on(report, warnings=found[-1].warnings)
    return found[-1]


def write_outcome(folder: Path, probe: AttentiveProbe, images: DataSet, page: ProbeReport) -> None:
    """Writes the probe, as the last: where it is, the page and the splits are too."""
    write_report(folder / REPORT_FILE, page)
    write_lines(folder / SPLITS_FILE, _split_lines(images))
    probe.save(folder, overwrite=True)


def _split_lines(images: DataSet) -> Iterator[str]:
    for name, part in images.parts.items():
        for path, content, label in zip(part.paths, part.contents, part.labels, strict=True):
            numbers = [int(label)] if part.labels.ndim == 1 else np.flatnonzero(label).tolist()
            labels = [images.classes[i] for i in numbers]
            yield json.dumps(
                {"path": path, "labels": labels, "split": name, "digest": content.digest}
            )
