"""A trained network as a classifier in a folder: the adapter beside a probe's files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from aim_mlx.backend import mx
from aim_mlx.data.parts import Part
from aim_mlx.encoder.adapted import adapted
from aim_mlx.encoder.encoder import Encoder, vectors_and_skips
from aim_mlx.errors import AimError
from aim_mlx.finetune.config import FinetuneConfig
from aim_mlx.probe.heads import Head, flat
from aim_mlx.probe.probe import AttentiveProbe
from aim_mlx.probe.summary import Measured
from aim_mlx.tokens.source import token_identity
from aim_mlx.training.report import Advanced
from aim_mlx.weights.adapters import Adapter, write_adapter


def write_classifier(
    folder: Path,
    encoder: Encoder,
    head: Head,
    weights: Mapping[str, mx.array],
    config: FinetuneConfig,
) -> tuple[Encoder, Head]:
    """Writes the adapter of trained weights; the encoder with it, and the head.

    `head` is of the same kind; what it has that is not trained stays. Raises OutputError.
    """
    split = {"encoder": {}, "head": flat(head.parameters())}
    for name, value in weights.items():
        room, rest = name.split(".", 1)
        split[room][rest] = value
    own = Adapter(
        config.lora(encoder.model.config),
        split["encoder"],
        encoder.weights_digest,
        str(encoder.identity.get("model")),
    )
    changed = adapted(encoder, write_adapter(folder, own))
    trained = Head(head.config)
    trained.load_weights(list(split["head"].items()), strict=True)
    trained.eval()
    mx.eval(trained.parameters(), mx.random.state)
    return changed, trained


def as_probe(
    encoder: Encoder,
    head: Head,
    classes: tuple[str, ...],
    multi_label: bool,
    training: Mapping[str, Any],
) -> AttentiveProbe:
    """The classifier of a fine-tuned encoder, which predicts as a probe does."""
    model = {name: value for name, value in encoder.identity.items() if name != "adapter"}
    return AttentiveProbe(
        head,
        classes,
        token_identity(encoder),
        model,  # the adapter lies beside the head, wherever that goes
        (),
        multi_label,
        {},
        dict(training),
        encoder,
    )


def measure(progress: Advanced, probe: AttentiveProbe, name: str, part: Part) -> Measured:
    """A classifier on a part; raises AimError for an image that can no longer be decoded."""

    def looking(done: int, total: int) -> None:
        progress(f"looking at {name}", done, total)

    rows = probe.predict_stream(part.paths)
    vectors, failed = vectors_and_skips(rows, part.paths, looking)
    if failed:
        raise AimError(
            f"{failed[0].path!r} could be read when the run began, and now cannot "
            f"({failed[0].detail}): put it back, and run the same command again"
        )
    return Measured.of(name, part, np.stack(vectors), probe.classes)
