"""A model for host apps, such as Swift apps through PythonKit: errors are data, none is raised.

One thread of the process does all of MLX's work, call after call, for all Embedders. docs/apps.md
has the rules for a host's own threads.
"""

import gc
import logging
import os
import warnings
from collections.abc import Callable
from contextlib import closing
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from aim_mlx.bridge.given import as_view, image, is_path, listed, pixels
from aim_mlx.bridge.memory import check_fits, how_many, limit_bytes
from aim_mlx.bridge.owner import Call, calls_of, do
from aim_mlx.errors import (
    AimError,
    BackendError,
    CheckpointError,
    ImageError,
    Interrupted,
    UsageError,
)

if TYPE_CHECKING:
    from aim_mlx.encoder.encoder import Encoder
    from aim_mlx.images import ImageSource
    from aim_mlx.words.zeroshot import ZeroShotHead

_KINDS = {
    Interrupted: "cancelled",
    UsageError: "usage",
    CheckpointError: "model",
    BackendError: "backend",
    AimError: "memory",  # nothing here raises the base of the kinds for another reason
    MemoryError: "memory",
}
_TO_NOBODY = logging.NullHandler()
_TEXTS = 256  # between two looks at whether the call was cancelled
_LARGEST_SIDE = 896  # of an image of 4096 patches, the most that a native model takes
_LONGEST_ERROR = 1000


class Result(TypedDict):
    """What a call returns: `values` is flat, row after row, and `shape` is (rows, length of one).

    `values` is a contiguous float32 array of one axis, or nested lists for `as_lists`. `ok` is
    True where every row has its values. Otherwise `error` is one line, and `kind` a word: "usage",
    "model", "backend", "memory", "cancelled", "internal", or the reason why an image cannot be
    embedded, such as "truncated". Of "skipped", only some images of a list have none: their rows
    are NaN, and `skipped` says of each its index, reason and detail. `notes` are sentences about
    what the values mean, such as that a text was cut.
    """

    ok: bool
    error: str
    kind: str
    shape: list[int]
    values: Any
    skipped: list[dict[str, Any]]
    notes: list[str]


_Work = Callable[[Call], NDArray[np.float32] | None]


class Embedder:
    """A model whose calls may come from several threads, raise nothing and print nothing.

    `model`, `dtype` and `offline` are those of `aim_mlx.load`; without the network by default. The
    model is loaded when it is first used, or by prepare(). `memory_limit_mb` bounds what MLX holds
    in this process, weights included, by fewer images at a time; a model that cannot keep to it is
    refused. `as_lists` gives nested lists, for hosts without NumPy.
    """

    def __init__(
        self,
        model: Any,
        *,
        dtype: str | None = None,
        offline: bool = True,
        memory_limit_mb: float | None = None,
        as_lists: bool = False,
    ):
        self._model, self._dtype, self._offline = model, dtype, offline
        self._memory_limit_mb, self._as_lists = memory_limit_mb, as_lists
        self._reset()
        # What is warned of is in `notes`, and what Pillow logs is in errors: without these lines
        # both would reach stderr as well.
        warnings.filterwarnings("ignore", module=r"aim_mlx\.bridge\.")
        logging.getLogger("PIL").addHandler(_TO_NOBODY)

    def embed_files(self, paths: Any) -> Result:
        """Image files, a list of paths or one -> vectors (n, D) of length 1, row i for path i."""

        def work(call: Call) -> NDArray[np.float32]:
            return self._embed(call, [paths] if is_path(paths) else listed(paths, "paths"))

        return self._call(work)

    def embed_bytes(self, data: Any) -> Result:
        """Images as the bytes of their files, a list or one -> (n, D)."""

        def work(call: Call) -> NDArray[np.float32]:
            many = data if isinstance(data, (list, tuple)) else [data]
            return self._embed(call, [as_view(each).tobytes() for each in many])

        return self._call(work)

    def embed_rgb(self, buffer: Any, height: Any, width: Any) -> Result:
        """One image as height x width x 3 bytes, upright RGB in rows without padding -> (1, D)."""
        return self._call(lambda call: self._embed(call, [pixels(buffer, height, width)]))

    def embed_text(self, texts: Any) -> Result:
        """Texts, a list or one -> vectors (n, P) of length 1, to compare with those of images."""
        return self._call(lambda call: self._embed_texts(call, texts))

    def classify(
        self, images: Any, labels: Any, templates: Any = "plain", multi_label: Any = False
    ) -> Result:
        """One image or a list -> scores (n, C) for the labels, in their order, as LiT.classify.

        An image is a path, the bytes of a file, or a tuple (buffer, height, width) as embed_rgb
        takes them. The vectors of the last labels are kept for the next call.
        """

        def work(call: Call) -> NDArray[np.float32]:
            many = images if isinstance(images, list) else [images]
            sources = [image(each) for each in many]
            head = self._head_for(call, labels, templates, bool(multi_label))
            vectors = self._embed(call, sources)
            scores = np.full((len(vectors), len(head.labels)), np.nan, np.float32)
            good = np.isfinite(vectors).all(axis=1)
            scores[good] = head.scores(vectors[good], bool(multi_label))
            return scores

        return self._call(work)

    def prepare(self) -> Result:
        """Loads the model and runs it once, so that the first image takes no longer than others."""

        def work(call: Call) -> None:
            _warm_up(self._loaded(call))

        return self._call(work)

    def release(self) -> Result:
        """Cancels the calls that run or wait, then frees the model; a later call loads it again."""
        self.cancel()
        return self._call(self._free)

    def progress(self) -> dict[str, Any]:
        """{running, done, total}: images or texts of the call at work; returns at once."""
        for call in self._calls():
            return {"running": True, "done": call.done, "total": call.total}
        return {"running": False, "done": 0, "total": 0}

    def cancel(self) -> None:
        """Ends the calls that run, after the batch they compute, or wait; returns at once.

        They return the kind "cancelled". Later calls are not affected.
        """
        for call in self._calls():
            call.cancelled = True

    def _calls(self) -> list[Call]:
        return calls_of(self)

    def _call(self, work: _Work) -> Result:
        call = Call(self)
        try:
            return do(call, lambda: self._answer(call, work))
        except RuntimeError as error:  # no thread can be started, as where the interpreter ends
            return self._result(call, None, _one_line(error), "internal")

    def _answer(self, call: Call, work: _Work) -> Result:
        try:
            vectors = work(call)
            error, kind = _of_skipped(call)
            return self._result(call, vectors if kind in ("", "skipped") else None, error, kind)
        except BaseException as error:  # an app must not end because of what it is given
            kinds = (kind for base, kind in _KINDS.items() if isinstance(error, base))
            kind = error.reason if isinstance(error, ImageError) else next(kinds, "internal")
            return self._result(call, None, _one_line(error), kind)

    def _result(
        self, call: Call, vectors: NDArray[np.float32] | None, error: str, kind: str
    ) -> Result:
        vectors = np.zeros(0, np.float32) if vectors is None else vectors
        return {
            "ok": not error,
            "error": error,
            "kind": kind,
            "shape": list(vectors.shape),
            "values": vectors.tolist() if self._as_lists else vectors.reshape(-1),
            "skipped": call.skipped,
            "notes": call.notes,
        }

    def _embed(self, call: Call, images: list["ImageSource"]) -> NDArray[np.float32]:
        """Vectors (n, D) of the images; the rows of those that cannot be embedded are NaN."""
        from aim_mlx.encoder.encoder import EmbedOptions

        encoder = self._loaded(call)
        call.total = len(images)
        vectors = np.full((len(images), encoder.dim(EmbedOptions())), np.nan, np.float32)
        rows = encoder.embed_stream(
            images, block=self._images, stop=lambda: call.cancelled, in_host=True
        )
        dark = 0
        with closing(rows):
            for row in rows:
                call.done = row.index + 1
                dark += row.dark
                if row.failure is None:
                    vectors[row.index] = row.vector
                else:
                    reason, detail = row.failure.reason, row.failure.detail
                    call.skipped.append({"index": row.index, "reason": reason, "detail": detail})
        if dark:
            call.notes.append(
                f"{dark} 16-bit image(s) use less than an eighth of their range: the model sees "
                "them nearly black"
            )
        return vectors

    def _embed_texts(self, call: Call, texts: Any) -> NDArray[np.float32]:
        from aim_mlx.models.pooling import normalized
        from aim_mlx.words.lit import as_lit

        texts = [texts] if isinstance(texts, str) else listed(texts, "texts")
        lit = as_lit(self._loaded(call))
        tokens = lit.tokenize(texts)
        if tokens.cut:
            call.notes.append(_cut(len(tokens.cut), tokens.ids.shape[1]))
        call.total = len(texts)
        vectors = np.empty((len(texts), lit.lit.config.projection_dim), np.float32)
        for start in range(0, len(texts), self._texts):
            call.check()
            part = slice(start, start + self._texts)
            vectors[part] = np.array(normalized(lit.encode_text(tokens.ids[part])))
            call.done = min(part.stop, len(texts))
        return vectors

    def _head_for(self, call: Call, labels: Any, templates: Any, single: bool) -> "ZeroShotHead":
        """The vectors of the labels, those of the last call where they are the same."""
        from aim_mlx.words.lit import as_lit
        from aim_mlx.words.prompts import as_labels, as_templates
        from aim_mlx.words.zeroshot import ZeroShotHead

        labels = as_labels(listed(labels, "labels"), single)
        if not isinstance(templates, (str, os.PathLike)):
            templates = listed(templates, "templates")
        templates, lit = as_templates(templates), as_lit(self._loaded(call))
        head = self._head
        if head is None or (head.labels, head.templates) != (labels, templates):

            def go_on(done: int, total: int) -> None:
                call.check()

            head = ZeroShotHead.build(lit, labels, templates, single=single, progress=go_on)
            self._head = head
        if head.cut:
            call.notes.append(_cut(head.cut, lit.lit.config.text.context_length))
        return head

    def _loaded(self, call: Call) -> "Encoder":
        call.check()
        if self._encoder is None:
            self._load(call)
        assert self._encoder is not None
        return self._encoder

    def _load(self, call: Call) -> None:
        from aim_mlx.backend import dtype_named
        from aim_mlx.loading import encoder_of, locate
        from aim_mlx.weights.checkpoint import open_checkpoint
        from aim_mlx.weights.load import too_large_unpacked

        dtype = dtype_named(self._dtype)
        limit = limit_bytes(self._memory_limit_mb)
        checkpoint = open_checkpoint(locate(self._model, offline=bool(self._offline)))
        if limit is not None and checkpoint.quantization is None:
            check_fits(limit, checkpoint.parameters * dtype.size)
        packed = None if limit is None else too_large_unpacked(checkpoint, dtype, limit // 2)
        encoder = encoder_of(checkpoint, self._model, dtype, packed)
        call.notes.extend(map(str, checkpoint.remarks()))
        if limit is not None:
            self._keep_to(limit, encoder)
        self._encoder = encoder

    def _keep_to(self, limit: int, encoder: "Encoder") -> None:
        """Sets how many images and texts run together, by what one of the largest needs."""
        from aim_mlx.backend import mx
        from aim_mlx.words.lit import LiT

        side = encoder.preprocessing.crop_size or _LARGEST_SIDE
        fit = how_many(limit, lambda: _embed_grey(encoder, side))
        self._images = max(1, fit // 2)  # on a GPU a batch starts while the one before it computes
        if isinstance(encoder, LiT):
            longest = encoder.lit.config.text
            ids = np.full((1, longest.context_length), longest.eos_token_id - 1, np.int32)
            ids[:, -1] = longest.eos_token_id
            self._texts = min(_TEXTS, how_many(limit, lambda: encoder.encode_text(ids)))
        self._limit_before = mx.set_memory_limit(limit)

    def _free(self, call: Call) -> None:
        if self._encoder is None:
            return
        from aim_mlx.backend import mx, return_memory

        limit = self._limit_before
        self._reset()
        gc.collect()
        if limit is not None:
            mx.set_memory_limit(limit)
        return_memory()

    def _reset(self) -> None:
        self._encoder: Encoder | None = None
        self._head: ZeroShotHead | None = None
        self._images: int | None = None  # that run together, None for as many as are quick
        self._texts = _TEXTS
        self._limit_before: int | None = None


def _of_skipped(call: Call) -> tuple[str, str]:
    """The error and its kind for images that could not be embedded; both are empty for none."""
    if not call.skipped:
        return "", ""
    first, count = call.skipped[0], len(call.skipped)
    error = f"{first['reason']}: {first['detail']}"
    if call.total > 1:
        error = f"{count} of {call.total} images skipped, first image {first['index']}: {error}"
    return _one_line(error), "skipped" if count < call.total else first["reason"]


def _one_line(error: object) -> str:
    try:
        text = " ".join(str(error).split())[:_LONGEST_ERROR]
    except BaseException:  # what was given may say anything of itself
        text = ""
    if isinstance(error, (AimError, str)):
        return text
    return f"{type(error).__name__}: {text}"


def _cut(count: int, longest: int) -> str:
    return f"{count} text(s) of more than {longest} tokens cut to that length, the end token kept"


def _embed_grey(encoder: "Encoder", side: int) -> None:
    for _ in encoder.embed_stream([np.full((side, side, 3), 128, np.uint8)], in_host=True):
        pass


def _warm_up(encoder: "Encoder") -> None:
    from aim_mlx.words.lit import LiT

    _embed_grey(encoder, encoder.preprocessing.crop_size or 224)
    if isinstance(encoder, LiT) and encoder.tokenizer is not None:
        encoder.encode_text(["a photo"])
