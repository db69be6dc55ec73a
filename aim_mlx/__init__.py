"""Run and adapt Apple's AIM vision encoders with MLX.

The public names are imported when they are first used, so that `import aim_mlx` stays instant.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING

if sys.version_info < (3, 11):  # noqa: UP036 - pip refuses; a clone that is not installed says so
    raise ImportError(
        "aim-mlx needs Python 3.11 or newer, this is {}.{}".format(*sys.version_info[:2])
    )

if TYPE_CHECKING:  # for editors and type checkers; `_NAMES` says the same to Python
    from aim_mlx.bridge import Embedder as Embedder
    from aim_mlx.config import LiTConfig as LiTConfig
    from aim_mlx.config import PreprocessConfig as PreprocessConfig
    from aim_mlx.config import TextConfig as TextConfig
    from aim_mlx.config import VisionConfig as VisionConfig
    from aim_mlx.encoder.encoder import Embedded as Embedded
    from aim_mlx.encoder.encoder import EmbedOptions as EmbedOptions
    from aim_mlx.encoder.encoder import Encoder as Encoder
    from aim_mlx.errors import AimError as AimError
    from aim_mlx.errors import AssumedHeadsWarning as AssumedHeadsWarning
    from aim_mlx.errors import BackendError as BackendError
    from aim_mlx.errors import CheckpointError as CheckpointError
    from aim_mlx.errors import DarkImageWarning as DarkImageWarning
    from aim_mlx.errors import ImageError as ImageError
    from aim_mlx.errors import Interrupted as Interrupted
    from aim_mlx.errors import NotFinite as NotFinite
    from aim_mlx.errors import OutputError as OutputError
    from aim_mlx.errors import OverflowWarning as OverflowWarning
    from aim_mlx.errors import TruncatedTextWarning as TruncatedTextWarning
    from aim_mlx.errors import UntrainedModelWarning as UntrainedModelWarning
    from aim_mlx.errors import UsageError as UsageError
    from aim_mlx.images import ImageSource as ImageSource
    from aim_mlx.loading import load as load
    from aim_mlx.loading import load_encoder as load_encoder
    from aim_mlx.loading import load_lit as load_lit
    from aim_mlx.models.text import TextFeatures as TextFeatures
    from aim_mlx.models.vision import Features as Features
    from aim_mlx.pretrain.pretrained import Pretrained as Pretrained
    from aim_mlx.pretrain.pretrained import load_pretrained as load_pretrained
    from aim_mlx.probe.probe import AttentiveProbe as AttentiveProbe
    from aim_mlx.registry import MODELS as MODELS
    from aim_mlx.registry import ModelSpec as ModelSpec
    from aim_mlx.store.reader import EmbeddingStore as EmbeddingStore
    from aim_mlx.words.lit import LiT as LiT
    from aim_mlx.words.tokenizer import Tokenizer as Tokenizer
    from aim_mlx.words.zeroshot import ZeroShotHead as ZeroShotHead

__version__ = "0.1.0"

_NAMES = {
    "bridge": ("Embedder",),
    "config": ("LiTConfig", "PreprocessConfig", "TextConfig", "VisionConfig"),
    "encoder.encoder": ("EmbedOptions", "Embedded", "Encoder"),
    "errors": ("AimError", "AssumedHeadsWarning", "BackendError", "CheckpointError")
    + ("DarkImageWarning", "ImageError", "Interrupted", "NotFinite", "OutputError")
    + ("OverflowWarning", "TruncatedTextWarning", "UntrainedModelWarning", "UsageError"),
    "images": ("ImageSource",),
    "words.lit": ("LiT",),
    "words.tokenizer": ("Tokenizer",),
    "pretrain.pretrained": ("Pretrained", "load_pretrained"),
    "loading": ("load", "load_encoder", "load_lit"),
    "models.text": ("TextFeatures",),
    "models.vision": ("Features",),
    "probe.probe": ("AttentiveProbe",),
    "registry": ("MODELS", "ModelSpec"),
    "store.reader": ("EmbeddingStore",),
    "words.zeroshot": ("ZeroShotHead",),
}
_HOME = {name: f"aim_mlx.{module}" for module, names in _NAMES.items() for name in names}
__all__ = sorted(_HOME)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'aim_mlx' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__():
    return sorted([*globals(), *__all__])
