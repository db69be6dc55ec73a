"""What is read of pairs: text ids, and image tokens from a cache where they fit, else computed."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from aim_mlx.data.pairs import Pairs
from aim_mlx.encoder.encoder import Encoder
from aim_mlx.images import Skip
from aim_mlx.lit_training.model import trimmed
from aim_mlx.tokens.cache import TokenCache
from aim_mlx.tokens.source import StreamedTokens, TokenSource, undecodable
from aim_mlx.training.report import Advanced, Report
from aim_mlx.wording import megabytes
from aim_mlx.words.tokenizer import TokenIds

TokensOf = Callable[[Pairs], TokenSource]


@dataclass(frozen=True)
class Split:
    """Pairs with all that training and evaluation read: image tokens and text ids."""

    pairs: Pairs
    tokens: TokenSource
    texts: TokenIds

    def batch(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Tokens (B, N, D) float16 and ids (B, L) of some pairs."""
        ids = trimmed(self.texts.ids[rows], self.texts.lengths[rows])
        return np.stack(self.tokens.batch(self.pairs.images[rows])), ids


def tokens_of(
    cache: TokenCache, encoder: Encoder, pairs: Pairs, report: Report, advanced: Advanced
) -> tuple[TokensOf, list[Skip]]:
    """A source of tokens for any of these pairs, and the images that cannot be decoded.

    Whatever `advanced` raises ends it; the tokens computed by then are kept.
    """
    digests = pairs.digests
    size = cache.bytes_to_add(digests)
    if cache.fits(digests):
        if size:
            report.noted(f"the image tokens take {megabytes(size)} on the disk, at most")
        images = dict(zip(digests, zip(pairs.paths, pairs.contents, strict=True), strict=True))
        skips = cache.fill(images, lambda *n: advanced("caching tokens", *n))
        return lambda part: cache.rows(part.digests), skips
    report.noted(
        f"the image tokens would take {megabytes(size)}, over the limit: they are computed from "
        "the images in every epoch"
    )
    skips = undecodable(encoder, pairs.paths, lambda *n: advanced("checking images", *n))
    return lambda part: StreamedTokens(encoder, part.paths), skips
