"""Runs of `aim-mlx embed` in this process, and what they wrote."""

import io
import json
import os
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aim_mlx import EmbeddingStore
from aim_mlx.cli import main as cli

OUTPUTS = ("o.npz", "store")  # one of each kind
SAME = 1e-5  # float32 sums in another order, as the images of a batch change


@dataclass
class Run:
    """How a run ended and what it said."""

    code: int
    stderr: str
    records: list[dict[str, Any]]

    @property
    def summary(self) -> dict[str, Any]:
        assert self.records[-1]["event"] == "summary", self.stderr
        return self.records[-1]

    @property
    def skipped(self) -> dict[str, dict[str, Any]]:
        """The record of each skip, by the name of the file."""
        return {Path(r["path"]).name: r for r in self.records if r["event"] == "skipped"}

    @property
    def reasons(self) -> dict[str, str]:
        return {name: record["reason"] for name, record in self.skipped.items()}

    def check_account(self, embedded: int, skipped: int, ignored: int) -> None:
        """The sum, and the exit code that goes with it."""
        counts = {"embedded": embedded, "skipped": skipped, "ignored": ignored}
        assert {name: self.summary[name] for name in counts} == counts
        assert self.summary["listed"] == embedded + skipped + ignored
        assert self.code == self.summary["exit_code"] == (3 if skipped else 0)
        assert len(self.skipped) == skipped


def embed(*arguments: object) -> Run:
    """`aim-mlx embed ... --json` in this process."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = cli._run(["embed", *map(str, arguments), "--json"])
    return Run(code, err.getvalue(), [json.loads(line) for line in out.getvalue().splitlines()])


def vectors_of(output: Path) -> dict[str, np.ndarray]:
    """Name of the file -> its vector, from any output."""
    if output.is_dir():
        store = EmbeddingStore(output)
        paths, vectors = store.paths, np.array(store.vectors)
    else:
        with np.load(output) as archive:
            paths, vectors = archive["paths"].tolist(), archive["embeddings"]
    found = {os.path.basename(path): vector for path, vector in zip(paths, vectors, strict=True)}
    assert len(found) == len(paths)
    return found


def make(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder
