"""AttentiveProbe: a trained head with its classes and the encoder that it belongs to."""

import os
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aim_mlx.backend import dtype_named, mx
from aim_mlx.data.labels import as_labels, classes_of, held_out, paired
from aim_mlx.encoder.adapted import adapted
from aim_mlx.encoder.encoder import Embedded, Encoder, listed, named, vector_of
from aim_mlx.errors import CheckpointError, ImageError, UsageError
from aim_mlx.images import ImageSource
from aim_mlx.models.layers import block_indices
from aim_mlx.probe.config import protocol
from aim_mlx.probe.head_files import load_head, read_probe, write_probe
from aim_mlx.probe.heads import Head
from aim_mlx.probe.losses import probabilities
from aim_mlx.probe.training import GridTrainer, LabelledTokens
from aim_mlx.tokens.source import frozen_tokens, token_identity, token_shape
from aim_mlx.training import loop
from aim_mlx.training.report import Report
from aim_mlx.weights.adapters import ADAPTER_CONFIG, read_adapter

_AT_ONCE = 32  # images whose tokens are held while they wait for the head


@dataclass(eq=False)
class AttentiveProbe:
    """A head on an encoder's frozen tokens; `classes` names its outputs.

    With `multi_label` an image may have any number of classes. `layers` are the blocks whose
    outputs are averaged, none for the tokens of the final norm. `identity` is what decides
    the tokens (see `tokens.token_identity`), checked against the encoder; `model` says which it
    was. `metrics` and `training` are records.
    """

    head: Head
    classes: tuple[str, ...]
    identity: dict[str, Any]
    model: dict[str, Any] = field(default_factory=dict)
    layers: tuple[int, ...] = ()
    multi_label: bool = False
    metrics: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    _encoder: Encoder | None = field(default=None, repr=False)

    @classmethod
    def train(
        cls,
        encoder: Encoder,
        images: Sequence[ImageSource],
        labels: Sequence[str] | Sequence[Sequence[str]],
        *,
        validation: tuple[Sequence[ImageSource], Sequence[Any]] | None = None,
        protocol_name: str = "fast",
        layers: Sequence[int] = (),
        report: Report | None = None,
        **options: Any,
    ) -> "AttentiveProbe":
        """Trains the grid of a protocol on images in memory, and keeps the best head.

        A label is a class's name, or a list of names where an image may have several. `validation`
        is images and labels to choose by; without them a fifth of each class is held out by the
        seed. `options` change the protocol (see ProbeConfig). Tokens of all images are held in
        memory, float16. Raises UsageError for labels or options that do not serve, ImageError for
        an image that cannot be decoded.
        """
        if not isinstance(encoder, Encoder):
            raise UsageError(f"expected an encoder, such as load() gives, got {encoder!r:.80}")
        config = protocol(protocol_name, **options)
        images, labels = paired(listed(images), labels)
        if validation is None:
            kept, held = held_out(labels, config.seed)
            validation = [images[i] for i in held], [labels[i] for i in held]
            images, labels = [images[i] for i in kept], [labels[i] for i in kept]
        else:
            validation = paired(listed(validation[0]), validation[1])
            kept, held = range(len(images)), range(len(validation[0]))
        classes, multi_label = classes_of(labels)
        parts = [
            LabelledTokens(
                _InMemory(encoder, part, layers, places), as_labels(names, classes, multi_label)
            )
            for part, names, places in ((images, labels, kept), (*validation, held))
        ]
        heads = encoder.model.config.num_heads
        trainer = GridTrainer(config, len(classes), parts[0], parts[1], heads)
        loop.run(trainer, report=report)
        return trained_probe(trainer, encoder, classes, layers)

    @classmethod
    def from_head(
        cls,
        path: str | os.PathLike[str],
        encoder: Encoder,
        classes: Sequence[str],
        *,
        layers: Sequence[int] = (),
        heads: int | None = None,
    ) -> "AttentiveProbe":
        """A head that was trained elsewhere on an encoder's tokens, from its file (see load_head).

        `classes` names its outputs in order, each once; it has as many attention heads as the
        encoder unless `heads` says otherwise. Raises CheckpointError for a file that is no head or
        is one for another width, UsageError for classes or layers that do not serve.
        """
        config, (_, D) = encoder.model.config, token_shape(encoder)
        head = load_head(path, heads or config.num_heads)
        if head.config.dim != D:
            raise CheckpointError(
                f"this head is for tokens of {head.config.dim} channels, the encoder's have {D}: "
                "use the encoder that it was trained on"
            )
        if len(set(classes)) != head.config.classes or len(classes) != head.config.classes:
            raise UsageError(
                f"this head has {head.config.classes} outputs: expected as many names, each once, "
                f"got {len(classes)}, {len(set(classes))} of them different"
            )
        block_indices(layers, config.num_blocks)
        identity = token_identity(encoder, layers)
        probe = cls(head, tuple(classes), identity, encoder.identity, tuple(layers))
        probe._encoder = encoder
        return probe

    @classmethod
    def load(
        cls,
        folder: str | os.PathLike[str],
        encoder: Encoder | str | os.PathLike[str] | None = None,
        *,
        offline: bool = False,
        progress: type | None = None,
    ) -> "AttentiveProbe":
        """A probe from its folder, with the encoder given or else the one it was trained on.

        That is loaded by the name or path given as `encoder`, from the folder itself, or by the
        name or path that it had; what fine-tuning changed of it is in the folder and comes with it.
        Raises UsageError for a folder without a probe, CheckpointError for a damaged one and for an
        encoder, preprocessing or layers that are not those it was trained on.
        """
        probe = cls(**read_probe(Path(folder)))
        beside = (Path(folder) / ADAPTER_CONFIG).exists()
        adapter = folder if beside else probe.model.get("adapter")
        dtype = probe.model.get("dtype", "float32")
        if not isinstance(encoder, Encoder):
            from aim_mlx.loading import load

            named = probe.model.get("model") if encoder is None else encoder
            if encoder is None and (Path(folder) / "config.json").exists():
                named = folder
            if not isinstance(named, (str, os.PathLike)):
                raise CheckpointError(
                    f"{os.fspath(folder)!r} does not say which model it belongs to: load that, and "
                    "give it as encoder="
                )
            try:
                encoder = load(
                    named,
                    dtype="float32" if adapter else dtype,
                    packed=probe.model.get("packed"),
                    offline=offline,
                    progress=progress,
                )
            except (UsageError, CheckpointError) as error:
                if encoder is not None:
                    raise
                raise CheckpointError(
                    f"the encoder of this probe cannot be loaded ({error}): say where it is now by "
                    "--model, or give it as encoder="
                ) from error
        if adapter is not None and "adapter" not in encoder.identity:
            changes = read_adapter(adapter, encoder.model.config)
            encoder = adapted(encoder, changes, dtype_named(dtype))
        probe.check(encoder)
        probe._encoder = encoder
        return probe

    def save(self, folder: str | os.PathLike[str], overwrite: bool = False) -> Path:
        """Writes probe.safetensors and probe.json into a folder, new or existing.

        Raises OutputError where that cannot be done, or where a probe is there already.
        """
        values = {k: v for k, v in vars(self).items() if not k.startswith("_") and k != "head"}
        return write_probe(Path(folder), self.head, values, overwrite)

    def check(self, encoder: Encoder) -> None:
        """Raises CheckpointError unless the tokens come from the encoder of this probe."""
        given = token_identity(encoder, self.layers)
        for name in dict.fromkeys([*given, *self.identity]):
            if given.get(name) != self.identity.get(name):
                raise CheckpointError(
                    f"this probe was trained on {self.model.get('model')!r}, and the {name} of the "
                    f"encoder given ({encoder.identity.get('model')!r}) are others: use the one it "
                    "was trained on, or train again"
                )

    @property
    def encoder(self) -> Encoder:
        """The encoder whose tokens the head reads; raises UsageError where there is none."""
        if self._encoder is None:
            raise UsageError("this probe has no encoder: load it with one")
        return self._encoder

    def predict(self, images: Iterable[ImageSource]) -> list[Any]:
        """The class of each image, or with several labels the tuple of those likelier than not.

        Raises ImageError, naming the image, for one that cannot be decoded.
        """
        rows = self.predict_proba(images)
        if self.multi_label:
            return [
                tuple(name for name, p in zip(self.classes, row, strict=True) if p > 0.5)
                for row in rows
            ]
        return [self.classes[each] for each in rows.argmax(axis=1)]

    def predict_proba(self, images: Iterable[ImageSource]) -> NDArray[np.float32]:
        """Probabilities, float32 (n, C), row i for image i; raises as predict().

        They sum to one, or with several labels each stands for itself.
        """
        images = listed(images)
        with closing(self.predict_stream(images)) as rows:
            vectors = [vector_of(row, images) for row in rows]
        return np.stack(vectors) if vectors else np.empty((0, len(self.classes)), np.float32)

    def predict_stream(self, images: Iterable[ImageSource]) -> Generator[Embedded, None, None]:
        """Yields a row for each image, in order, whose `vector` is its probabilities, float32 (C,).

        An image that cannot be decoded is a row with its failure, so is one whose probabilities are
        no numbers ("non_finite"). Raises UsageError for a probe without an encoder.
        """
        for rows, tokens in self._token_batches(listed(images)):
            vectors = iter(() if tokens is None else self._probabilities(tokens))
            for row in rows:
                row.output = None if row.failure else next(vectors)
                if row.output is not None and not np.isfinite(row.output).all():
                    row.failure = ImageError("non_finite", "the head gives no number")
                    row.output = None
                yield row

    def attention_maps(self, images: Iterable[ImageSource]) -> NDArray[np.float32]:
        """Where the head looks: float32 (n, K, h, w), each map summing to one.

        K is queries * heads, of a head of kind "ep" the queries.

        Raises UsageError for a head that does not attend, and as predict().
        """
        images, side = listed(images), self.encoder.model.config.grid or 0
        weights = []
        for rows, tokens in self._token_batches(images):
            for row in rows:
                vector_of(row, images)
            if tokens is not None:
                weights.append(np.array(self.head.attention(mx.array(tokens))))
        K = self.head.config.means
        maps = np.concatenate(weights) if weights else np.empty((0, K, side * side), np.float32)
        return maps.reshape(len(maps), K, side, side)

    def _token_batches(
        self, images: Sequence[ImageSource]
    ) -> Iterator[tuple[list[Embedded], np.ndarray | None]]:
        """Rows of images with the tokens, stacked, of those that could be decoded."""
        names = [str(each) if isinstance(each, (str, Path)) else "an image" for each in images]
        with closing(frozen_tokens(self.encoder, names, self.layers, images)) as stream:
            while rows := list(islice(stream, _AT_ONCE)):
                tokens = [row.vector for row in rows if row.failure is None]
                yield rows, np.stack(tokens) if tokens else None

    def _probabilities(self, tokens: np.ndarray) -> np.ndarray:
        """Of tokens (B, N, D): (B, C), NaN for an image whose logits are not all finite."""
        logits = np.array(self.head(mx.array(tokens)))
        sound = np.isfinite(logits).all(axis=1)
        rows = np.full(logits.shape, np.nan, np.float32)
        rows[sound] = probabilities(logits[sound], self.multi_label)
        return rows


def trained_probe(
    trainer: GridTrainer,
    encoder: Encoder,
    classes: Sequence[str],
    layers: Sequence[int] = (),
) -> AttentiveProbe:
    """The best head of a trainer as a probe; raises AimError where it has none yet."""
    head, best = trainer.best_head(), trainer.best
    chosen = {} if best is None else asdict(best)
    return AttentiveProbe(
        head,
        tuple(classes),
        token_identity(encoder, layers),
        encoder.identity,
        tuple(layers),
        trainer.multi_label,
        {"validation": chosen},
        {**asdict(trainer.config), "epochs_done": len(trainer.history)},
        encoder,
    )


class _InMemory:
    """Tokens of images, computed once and held.

    `places` are those of the images in the list that the caller has, for errors.
    """

    def __init__(
        self,
        encoder: Encoder,
        images: Sequence[ImageSource],
        layers: Sequence[int],
        places: Sequence[int],
    ):
        self.shape = token_shape(encoder)
        self._tokens = np.empty((len(images), *self.shape), np.float16)
        names = [str(each)[:200] for each in images]
        with closing(frozen_tokens(encoder, names, layers, images)) as rows:
            for row in rows:
                if row.failure is not None:
                    raise named(row.failure, places[row.index], images[row.index])
                self._tokens[row.index] = row.vector

    def for_epoch(self, epoch: int) -> "_InMemory":
        return self

    def batch(self, indices: Sequence[int] | np.ndarray) -> Sequence[np.ndarray]:
        return [self._tokens[row] for row in indices]
