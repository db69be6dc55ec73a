"""Zero-shot classification: labels and templates -> one vector a class -> scores of images.

The vector of a class is the mean of its prompts' vectors, each of length one, scaled to length one
(arXiv 2103.00020, section 3.1.4). It is kept as a head, which needs no text tower afterwards.
"""

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from aim_mlx.errors import CheckpointError, UsageError
from aim_mlx.weights.safetensors_file import check_file, read_tensor
from aim_mlx.weights.safetensors_writer import write_described
from aim_mlx.weights.strict_json import at, parse_object, read_bytes, show
from aim_mlx.words.prompts import as_labels, as_templates, filled

if TYPE_CHECKING:
    from aim_mlx.words.lit import LiT

_VECTORS, _RECORD = "labels.safetensors", "labels.json"
_FORMAT, _VERSION = "aim-mlx labels", 1
_LARGEST = 16 * 2**20  # bytes: a hundred thousand names; parsed, up to thirty times that
_LARGEST_VECTORS = 2**30
_PROMPTS_AT_ONCE = 8192  # so many that lengths can be sorted; their vectors take 25 MB


@dataclass(frozen=True, eq=False)
class ZeroShotHead:
    """A class for each label: `vectors` float32 (C, P), each of length one.

    `scale` multiplies cosines before a softmax; `weights` is the digest of the model's parameters,
    `model` says which it was; `cut` counts prompts that were over the context length.
    """

    labels: tuple[str, ...]
    templates: tuple[str, ...]
    vectors: NDArray[np.float32]
    scale: float
    weights: str
    model: dict[str, Any]
    cut: int = 0

    @classmethod
    def build(
        cls,
        lit: "LiT",
        labels: Sequence[str],
        templates: str | os.PathLike[str] | Sequence[str] = "plain",
        *,
        single: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> "ZeroShotHead":
        """Encodes every label in every template; memory does not grow with their product.

        `templates` are "plain", "varied", a file or a list; `single` admits one label alone;
        `progress` is called with the prompts done and their number. Raises UsageError for labels
        or templates that do not serve, CheckpointError for a model without a tokenizer.
        """
        from aim_mlx.words.lit import as_lit  # which makes heads itself

        lit, labels, templates = as_lit(lit), as_labels(labels, single), as_templates(templates)
        sums = np.zeros((len(labels), lit.lit.config.projection_dim))
        pairs = product(range(len(labels)), templates)
        done = cut = 0
        while block := list(islice(pairs, _PROMPTS_AT_ONCE)):
            tokens = lit.tokenize([filled(template, labels[row]) for row, template in block])
            vectors = _unit(np.array(lit.encode_text(tokens.ids), np.float64))
            np.add.at(sums, [row for row, _ in block], vectors)
            cut += len(tokens.cut)
            done += len(block)
            if progress is not None:
                progress(done, len(labels) * len(templates))
        classes = _unit(sums)
        if not np.isfinite(classes).all():
            label = labels[int(np.flatnonzero(~np.isfinite(classes).all(axis=1))[0])]
            raise CheckpointError(
                f"the vector of label {label!r:.80} is not finite: the weights or the dtype "
                f"{lit.dtype} do not serve; try --dtype float32"
            )
        return cls(
            labels,
            templates,
            classes.astype(np.float32),
            float(lit.lit.logit_scale),
            lit.weights_digest,
            lit.identity,
            cut,
        )

    def check(self, weights: str, model: str = "the model") -> None:
        """Raises CheckpointError unless images come from the model that the labels come from."""
        if weights != self.weights:
            raise CheckpointError(
                f"these labels were made with {show(self.model.get('model'))}, whose weights are "
                f"not those of {model}: make them again with it"
            )

    def scores(self, vectors: NDArray[Any], multi_label: bool = False) -> NDArray[np.float32]:
        """Image vectors (n, P), of any length -> float32 (n, C).

        Probabilities by a softmax over the labels; with `multi_label` the cosine with each label,
        -1 to 1, which does not depend on the others. Raises UsageError for vectors of another
        model.
        """
        vectors = np.asarray(vectors, np.float32)
        if vectors.ndim != 2 or vectors.shape[1] != self.vectors.shape[1]:
            raise UsageError(
                f"expected vectors (n, {self.vectors.shape[1]}), got {vectors.shape}: these labels "
                "belong to another model"
            )
        cosines = _unit(vectors) @ self.vectors.T
        if multi_label:
            return cosines
        if len(self.labels) == 1:
            raise UsageError("a softmax over one label says nothing: use multi_label=True")
        logits = self.scale * cosines
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True)

    def save(self, folder: str | os.PathLike[str], overwrite: bool = False) -> Path:
        """Writes labels.safetensors and labels.json into a folder, new or existing.

        Raises OutputError where that cannot be done, or where labels are there already.
        """
        folder = Path(folder)
        record = {"format": _FORMAT, "format_version": _VERSION, "dim": self.dim}
        record |= {name: value for name, value in vars(self).items() if name != "vectors"}
        arrays = {"vectors": self.vectors}
        write_described(folder, (_VECTORS, _RECORD), arrays, record, overwrite)
        return folder

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> "ZeroShotHead":
        """A head from its folder; no model is needed. Raises CheckpointError for a damaged one."""
        folder = Path(folder)
        path = folder / _RECORD
        if not path.exists():
            raise UsageError(f"{at(folder)} has no {_RECORD}: expected a folder with saved labels")
        record = parse_object(read_bytes(path, _LARGEST), at(path))
        try:
            return _head(folder, record)
        except (KeyError, TypeError, ValueError, UsageError) as error:
            raise CheckpointError(
                f"{at(path)} is not what saving labels writes ({error!s:.100}): make it again"
            ) from error

    @property
    def dim(self) -> int:
        """The length P of the vectors."""
        return self.vectors.shape[1]


def _head(folder: Path, values: dict[str, Any]) -> ZeroShotHead:
    """The head that labels.json describes; raises KeyError, TypeError, ValueError too."""
    form, version = values["format"], values["format_version"]
    if (form, version) != (_FORMAT, _VERSION):
        raise CheckpointError(
            f"{at(folder)} has {show(form)} of version {show(version)}, this aim-mlx reads "
            f"{_FORMAT!r} of version {_VERSION}"
        )
    labels, scale = as_labels(values["labels"], single=True), float(values["scale"])
    path = folder / _VECTORS
    data = read_bytes(path, _LARGEST_VECTORS)
    if hashlib.sha256(data).hexdigest() != values["sha256"]:
        raise CheckpointError(f"{at(path)} is not the file that {_RECORD} describes: save it again")
    vectors = read_tensor(check_file(path), "vectors")
    if vectors.dtype != np.float32 or vectors.shape != (len(labels), values["dim"]):
        raise TypeError(f"vectors {vectors.dtype} {vectors.shape}")
    if not np.isfinite(vectors).all() or not 1 <= scale <= 1e4:
        raise TypeError(f"a scale of {scale} or vectors that are not finite")
    weights, model = values["weights"], values["model"]
    if not isinstance(weights, str) or not isinstance(model, dict):
        raise TypeError("weights and model")
    templates = as_templates(list(values["templates"]))
    return ZeroShotHead(labels, templates, vectors, scale, weights, model, int(values["cut"]))


def _unit(vectors: np.ndarray) -> np.ndarray:
    """Rows of length one; a row of zeros stays, and one that is not finite becomes NaN."""
    with np.errstate(invalid="ignore", over="ignore"):
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors / np.maximum(lengths, np.finfo(np.float32).tiny)
