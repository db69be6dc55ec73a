"""Image files to pixels: discover, decode, preprocess, stream. Knows no model."""

from aim_mlx.images.discover import Listing, Skip, discover

__all__ = [
    "Listing",
    "Skip",
    "discover",
]
