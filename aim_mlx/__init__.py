"""Run and adapt Apple's AIM vision encoders with MLX.

The public names are imported when they are first used, so that `import aim_mlx` stays instant.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aim_mlx.embed import Embedded as Embedded
    from aim_mlx.embed import Encoder as Encoder
    from aim_mlx.errors import AimError as AimError
    from aim_mlx.lit import LiT as LiT
    from aim_mlx.loading import load as load
    from aim_mlx.models.vision import Features as Features
    from aim_mlx.probe.probe import AttentiveProbe as AttentiveProbe
    from aim_mlx.registry import MODELS as MODELS
    from aim_mlx.store.reading import EmbeddingStore as EmbeddingStore
    from aim_mlx.zeroshot import ZeroShotHead as ZeroShotHead

__version__ = "0.1.0"

_HOME = {
    "AimError": "aim_mlx.errors",
    "AttentiveProbe": "aim_mlx.probe.probe",
    "Embedded": "aim_mlx.embed",
    "Encoder": "aim_mlx.embed",
    "Features": "aim_mlx.models.vision",
    "EmbeddingStore": "aim_mlx.store.reading",
    "LiT": "aim_mlx.lit",
    "MODELS": "aim_mlx.registry",
    "ZeroShotHead": "aim_mlx.zeroshot",
    "load": "aim_mlx.loading",
}
__all__ = sorted(_HOME)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'aim_mlx' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__():
    return sorted([*globals(), *__all__])
