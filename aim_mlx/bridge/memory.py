"""How much fits into the memory that a host allows."""

from collections.abc import Callable
from typing import Any

from aim_mlx.errors import AimError, UsageError


def limit_bytes(limit_mb: Any) -> int | None:
    if limit_mb is None:
        return None
    if isinstance(limit_mb, bool) or not isinstance(limit_mb, (int, float)) or not limit_mb > 0:
        raise UsageError(f"expected memory_limit_mb above 0, got {limit_mb!r:.80}")
    return int(min(limit_mb, 1 << 40) * 2**20)


def check_fits(limit: int, needed: int, what: str = "the weights alone") -> None:
    if needed > limit:
        raise AimError(
            f"memory_limit_mb of {limit / 2**20:.0f} is too small, {what} need "
            f"{needed / 2**20:.0f}: raise it, or take a smaller model or dtype"
        )


def how_many(limit: int, work: Callable[[], Any]) -> int:
    """How often the memory that `work` takes fits beside what MLX holds; AimError for not once."""
    from aim_mlx.backend import mx

    held = mx.get_active_memory()
    mx.reset_peak_memory()
    work()
    each = max(1, mx.get_peak_memory() - held)
    check_fits(limit, held + each, "the weights and one image or text")
    return (limit - held) // each
