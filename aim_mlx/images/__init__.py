"""Image files to pixels: discover, decode, preprocess, stream. Knows no model."""

from aim_mlx.images.contents import (
    Content,
    Contents,
    KnownFile,
    changed,
    is_beyond_times,
    size_and_time,
)
from aim_mlx.images.decode import ImageSource, decode, thumbnail
from aim_mlx.images.discover import (
    Listing,
    Skip,
    discover,
    in_share,
    is_under,
    parse_share,
    read_paths,
)
from aim_mlx.images.limits import decoding_threads, default_max_pixels
from aim_mlx.images.preprocess import plan_native, preprocess
from aim_mlx.images.stream import Embedded, stream

__all__ = [
    "Content",
    "Contents",
    "Embedded",
    "ImageSource",
    "KnownFile",
    "Listing",
    "Skip",
    "changed",
    "decode",
    "decoding_threads",
    "default_max_pixels",
    "discover",
    "in_share",
    "is_beyond_times",
    "is_under",
    "parse_share",
    "plan_native",
    "preprocess",
    "read_paths",
    "size_and_time",
    "stream",
    "thumbnail",
]
