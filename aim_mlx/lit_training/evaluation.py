"""A model on the pairs that were held out."""

import numpy as np

from aim_mlx.backend import mx
from aim_mlx.lit_training.loop import Split
from aim_mlx.lit_training.model import trimmed
from aim_mlx.lit_training.retrieval import recalls
from aim_mlx.models.lit import LiTModel
from aim_mlx.models.pooling import normalized


def evaluate(model: LiTModel, held_out: Split, batch_size: int) -> dict[str, float]:
    """Recall at 1, 5 and 10 both ways among the images and the distinct captions of a split."""
    pairs = held_out.pairs
    captions, place = np.unique(np.array(pairs.captions, object), return_inverse=True)
    _, first = np.unique(place, return_index=True)
    images = [
        np.array(normalized(model.project_tokens(mx.array(tokens).astype(mx.float32))))
        for rows in _parts(len(pairs.paths), batch_size)
        for tokens in [np.stack(held_out.tokens.batch(rows))]
    ]
    texts = [
        np.array(normalized(model.encode_text(ids)))
        for rows in _parts(len(captions), batch_size)
        for ids in [trimmed(held_out.texts.ids[first[rows]], held_out.texts.lengths[first[rows]])]
    ]
    match = np.zeros((len(pairs.paths), len(captions)), bool)
    match[pairs.images, place.reshape(-1)] = True
    return recalls(np.concatenate(images), np.concatenate(texts), match)


def _parts(count: int, size: int) -> list[np.ndarray]:
    return np.split(np.arange(count), range(size, count, size))
