"""The MLX back end: which device and dtype, and a fast BLAS on Linux. Import `mx` and `nn` from here.

MLX's Linux CPU wheel bundles the reference BLAS; OpenBLAS, loaded into the process before MLX,
takes its place and multiplies matrices 17 to 35 times faster. The order matters, so this is the
only module that imports `mlx.core` by name.
"""

import ctypes
import importlib.util
import sys

from aim_mlx.errors import BackendError, UsageError

OPENBLAS = "libopenblas.so.0"
INSTALL_OPENBLAS = "sudo apt-get install libopenblas0-pthread"


def _load_openblas() -> str:
    """Loads OpenBLAS for the symbols MLX is about to bind; returns what happened, for `doctor`."""
    if sys.platform != "linux":
        return "not needed"
    if "mlx.core" in sys.modules:
        return "too late"
    try:
        ctypes.CDLL(OPENBLAS, mode=ctypes.RTLD_GLOBAL)
    except OSError:
        return "missing"
    return "loaded"


def _require_mlx() -> None:
    """Raises BackendError where MLX has no back end: bare `mlx` on Linux lacks its own library."""
    extra = "" if sys.platform == "darwin" else "[cpu]"
    advice = f"install it with: pip install 'aim-mlx{extra}'"
    if sys.platform == "linux":
        advice += " (or [cuda12], [cuda13] for an NVIDIA GPU)"
    if importlib.util.find_spec("mlx") is None:
        raise BackendError(f"MLX is not installed; {advice}")
    try:
        import mlx.core  # noqa: F401
    except ImportError as error:
        raise BackendError(f"MLX has no back end on this machine ({error}); {advice}") from error


openblas = _load_openblas()
_require_mlx()

import mlx.core as mx  # noqa: E402
import mlx.nn as nn  # noqa: E402
from mlx.utils import tree_flatten  # noqa: E402

__all__ = ["DTYPES", "device_name", "dtype_named", "mx", "nn", "on_gpu", "openblas", "tree_flatten"]

DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}


def on_gpu() -> bool:
    """Whether MLX computes on a GPU (Metal or CUDA) rather than on the CPU."""
    return mx.default_device().type == mx.DeviceType.gpu


def device_name() -> str:
    """"metal", "cuda" or "cpu": where MLX computes."""
    if not on_gpu():
        return "cpu"
    return "metal" if mx.metal.is_available() else "cuda"


def dtype_named(name: str | None) -> mx.Dtype:
    """The MLX dtype for a name; None is float32, the one dtype whose numbers are the reference's.

    Raises UsageError for other names.
    """
    try:
        return DTYPES[name or "float32"]
    except KeyError:
        raise UsageError(f"dtype must be one of {', '.join(DTYPES)}, got {name!r}") from None
