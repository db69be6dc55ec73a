"""A model on the pairs that were held out: how often the right text or image is found among all."""

import numpy as np

from aim_mlx.backend import mx
from aim_mlx.lit_training.features import Split
from aim_mlx.lit_training.model import trimmed
from aim_mlx.models.lit import LiTModel
from aim_mlx.models.pooling import normalized

KS = (1, 5, 10)
_BLOCK = 1024  # queries at a time


def recalls(images: np.ndarray, texts: np.ndarray, match: np.ndarray) -> dict[str, float]:
    """Recall at 1, 5 and 10 both ways, and what chance would give at 1.

    Unit vectors images (n, P) and texts (m, P); match (n, m) bool says which belong together, every
    row and column with at least one. A query succeeds at k if something that belongs to it is among
    the k most alike; what is exactly as alike as it counts as before it.
    """
    return {
        **_one_way("image_to_text", images, texts, match),
        **_one_way("text_to_image", texts, images, match.T),
    }


def _one_way(
    name: str, queries: np.ndarray, gallery: np.ndarray, match: np.ndarray
) -> dict[str, float]:
    ranks = np.empty(len(queries), np.int64)
    for start in range(0, len(queries), _BLOCK):
        part = slice(start, start + _BLOCK)
        scores, right = queries[part] @ gallery.T, match[part]
        best = np.where(right, scores, -np.inf).max(axis=1, keepdims=True)
        ranks[part] = (~right & ~(scores < best)).sum(axis=1)  # where no number is, all come first
    found = {f"{name}_recall@{k}": float((ranks < k).mean()) for k in KS}
    return {**found, f"{name}_chance@1": float(match.mean())}


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
