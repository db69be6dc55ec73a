"""A user's program: test_public.py runs it, .ci/check_user_types.py checks its types strictly."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import aim_mlx


def most_alike(model: Path, files: Sequence[Path], query: Path) -> list[tuple[float, str]]:
    """The photos most like another, and those that cannot be embedded left out."""
    encoder: aim_mlx.Encoder = aim_mlx.load(model, dtype="float32", offline=True)
    kept: list[Path] = []
    rows: list[NDArray[np.float32]] = []
    for row in encoder.embed_stream(files, aim_mlx.EmbedOptions(batch_size=2)):
        if row.failure is not None:
            print(files[row.index], row.failure.reason, row.failure.detail)
        else:
            kept.append(files[row.index])
            rows.append(row.vector)
    scores = np.stack(rows) @ encoder.embed([query])[0]
    return [(float(scores[i]), kept[i].name) for i in map(int, np.argsort(-scores))]


def tokens_of(model: Path, files: Sequence[Path]) -> tuple[int, ...]:
    """The shape of the tokens of some photos, one of the last block's outputs beside them."""
    encoder = aim_mlx.load(model)
    features = encoder.features(encoder.preprocess(files), layers=[-1])
    assert features.grid[0] * features.grid[1] == features.tokens.shape[1]
    assert np.array(features.layers[-1]).shape == features.tokens.shape
    return features.tokens.shape


def rows_of(folder: Path) -> dict[Path, float]:
    """Where the photos of a store are, and how long their vectors."""
    store = aim_mlx.EmbeddingStore(folder)
    encoder = aim_mlx.load_encoder(store, offline=True)
    assert store.finished and encoder.dim(store.options) == store.dim
    assert sum(len(vectors) for _, vectors in store.parts()) == len(store.paths)
    lengths = np.linalg.norm(store.vectors, axis=1)
    return {store.locate(row): float(length) for row, length in enumerate(lengths)}


def in_words(model: Path, files: Sequence[Path], labels: Sequence[str], folder: Path) -> list[str]:
    """The best label of each photo, once more with labels that were saved."""
    lit: aim_mlx.LiT = aim_mlx.load_lit(model)
    best = lit.classify(files, labels, templates="varied").argmax(axis=1)
    head = aim_mlx.ZeroShotHead.build(lit, labels, "varied")
    head.save(folder)
    again = aim_mlx.ZeroShotHead.load(folder).scores(lit.embed(files))
    assert again.argmax(axis=1).tolist() == best.tolist()
    pixels, texts = lit.preprocess(files), lit.encode_text(labels)
    assert lit.encode_image(pixels).shape[1] == texts.shape[1]
    assert np.array(lit.logits(pixels, labels)).shape == (len(files), len(labels))
    assert lit.similarity_maps(pixels[:1], texts).shape[0] == len(labels)
    return [labels[int(i)] for i in best]


def trained(model: Path, files: Sequence[Path], labels: Sequence[str], folder: Path) -> list[str]:
    """The classes that a probe, trained on some photos, gives them."""
    encoder = aim_mlx.load(model)
    made = aim_mlx.AttentiveProbe.train(encoder, files, labels, epochs=2)
    made.save(folder)
    probe = aim_mlx.AttentiveProbe.load(folder, encoder)
    assert probe.predict_proba(files).shape == (len(files), len(probe.classes))
    vectors = [row.vector for row in probe.predict_stream(files)]
    assert len(probe.attention_maps(files)) == len(vectors)
    return [str(name) for name in probe.predict(files)]


def widths() -> dict[str, int]:
    """The width of every published model."""
    return {name: spec.vision.embed_dim for name, spec in aim_mlx.MODELS.items()}


def reason(source: aim_mlx.ImageSource, model: Path) -> str:
    """Why something is no image, in one word."""
    config = aim_mlx.VisionConfig(64, 176, 3, 2, image_size=56)
    try:
        aim_mlx.load(model, config=config).embed([source])
    except aim_mlx.ImageError as error:
        return error.reason
    except (aim_mlx.UsageError, aim_mlx.CheckpointError) as error:
        return f"{error.exit_code}: {error}"
    return ""
