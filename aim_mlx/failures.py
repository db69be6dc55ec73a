"""What to do where memory or the GPU fails."""

from collections.abc import Iterator
from contextlib import contextmanager

from aim_mlx.errors import AimError
from aim_mlx.wording import counted


@contextmanager
def explained(batch: int) -> Iterator[None]:
    """Turns what MLX raises where memory or the GPU fails into an error that says what to do."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_of_device(error):
            raise
        raise failed(error, batch) from error


def failed(error: Exception, batch: int) -> AimError:
    """What to do about memory or a GPU that failed with so many images at a time."""
    what = "out of memory" if _is_of_memory(error) else "the GPU failed"
    advice = f"try --batch-size {batch // 2}" if batch > 1 else "close other programs and try again"
    said = "" if _is_of_memory(error) else f" ({error})"
    return AimError(f"{what} with {counted(batch, 'image')} at a time{said}: {advice}")


def is_of_device(error: Exception) -> bool:
    """Whether memory or the GPU failed, so that fewer images at a time may do."""
    return _is_of_memory(error) or "command buffer execution failed" in str(error).lower()


def _is_of_memory(error: Exception) -> bool:
    text = str(error).lower()
    return isinstance(error, MemoryError) or "alloc" in text or "memory" in text
