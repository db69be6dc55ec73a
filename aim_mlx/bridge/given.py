"""What a host gives, checked: lists, paths, bytes and pixels."""

import operator
import os
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from aim_mlx.errors import UsageError

if TYPE_CHECKING:
    from aim_mlx.images import ImageSource


def listed(given: Any, what: str) -> list[Any]:
    """A list, of a length that is known; raises UsageError for anything else."""
    if not isinstance(given, (list, tuple)):
        raise UsageError(f"expected a list of {what}, got {type(given).__name__}")
    return list(given)


def is_path(given: Any) -> bool:
    return isinstance(given, (str, os.PathLike))


def image(given: Any) -> "ImageSource":
    """A path, the bytes of a file, or (buffer, height, width), as a source; raises UsageError."""
    if isinstance(given, tuple):
        if len(given) != 3:
            raise UsageError(f"expected (buffer, height, width), got {len(given)} values")
        return pixels(*given)
    return given if is_path(given) else as_view(given).tobytes()


def as_view(data: Any) -> memoryview:
    try:
        return memoryview(data)
    except (TypeError, ValueError, BufferError) as error:  # no buffer, a released view
        raise UsageError(f"expected bytes, got {type(data).__name__}: {error}") from error


def pixels(buffer: Any, height: Any, width: Any) -> NDArray[np.uint8]:
    """The buffer as uint8 (H, W, 3), copied where it is not contiguous; raises UsageError."""
    view = as_view(buffer)
    try:
        height, width = operator.index(height), operator.index(width)
    except TypeError as error:
        raise UsageError(f"expected height and width as whole numbers: {error}") from error
    fits = min(height, width) > 0 and view.nbytes == 3 * height * width
    if not fits or view.itemsize != 1 or view.format[-1:] not in ("B", "c"):
        raise UsageError(
            f"expected {height} x {width} x 3 unsigned bytes of RGB, "
            f"got {view.nbytes} bytes of format {view.format!r}"
        )
    data = view if view.c_contiguous else view.tobytes()
    return np.frombuffer(data, np.uint8).reshape(height, width, 3)
