"""How often the right text is found for an image among all, and the right image for a text."""

import numpy as np

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
        ranks[part] = (~right & (scores >= best)).sum(axis=1)
    found = {f"{name}_recall@{k}": float((ranks < k).mean()) for k in KS}
    return {**found, f"{name}_chance@1": float(match.mean())}
