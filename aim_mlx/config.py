"""Sizes and preprocessing of a model as frozen, checked values."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar, TypeVar

from aim_mlx.errors import CheckpointError

HEAD_DIM = 128  # of every published model; what heads are counted by when no config says otherwise
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
QKV = ("q", "k", "v")
TARGETS = (*QKV, "proj", "mlp")  # of adapters
# The products of a block's feed-forward: AIMv2's are gate, down and up, AIMv1's up and down.
MLP_PRODUCTS = {"aimv2": ("fc1", "fc2", "fc3"), "aimv1": ("fc1", "fc2")}
CROP_ROUNDINGS = ("floor", "half_even")
FITS = ("crop", "squash", "pad")

# Far above any published size, far below what could exhaust a machine before a tensor is read.
_LARGEST = {
    "embed_dim": 65_536,
    "mlp_hidden_dim": 262_144,
    "num_blocks": 1_024,
    "num_heads": 1_024,
    "patch_size": 256,
    "image_size": 8_192,
    "vocab_size": 2**24,
    "context_length": 65_536,
    "projection_dim": 65_536,
    "shortest_edge": 16_384,
    "crop_size": 16_384,
}
_OPTIONAL = {"image_size", "shortest_edge", "crop_size"}  # None for native resolution


@dataclass(frozen=True)
class VisionConfig:
    """Sizes of a vision encoder; `image_size` None means native resolution.

    `family` "aimv1" has LayerNorm (whose epsilon `rms_norm_eps` then is), a GELU feed-forward and
    always sin-cos positions. Raises CheckpointError for sizes that are not positive whole numbers
    or do not fit each other.
    """

    embed_dim: int
    mlp_hidden_dim: int
    num_blocks: int
    num_heads: int
    patch_size: int = 14
    image_size: int | None = None
    rms_norm_eps: float = 1e-5
    family: str = "aimv2"

    def __post_init__(self):
        _check_sizes(self)
        _check_trunk(self)
        if self.family not in tuple(MLP_PRODUCTS):  # JSON may have a list there
            raise CheckpointError(
                f"family must be one of {', '.join(MLP_PRODUCTS)}, got {self.family!r:.80}: "
                "correct config.json"
            )
        if self.embed_dim % 4 and self.sincos:
            raise CheckpointError(
                f"embed_dim {self.embed_dim} is not a multiple of 4, which sin-cos positions need"
            )
        if self.image_size is not None and self.image_size % self.patch_size:
            raise CheckpointError(
                f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}: "
                "correct config.json"
            )

    @property
    def head_dim(self) -> int:
        return self.embed_dim // self.num_heads

    @property
    def native(self) -> bool:
        return self.image_size is None

    @property
    def sincos(self) -> bool:
        """Whether positions are computed; else they are learned, for one grid."""
        return self.native or self.family == "aimv1"

    @property
    def mlp_ratio(self) -> float:
        return self.mlp_hidden_dim / self.embed_dim

    @property
    def grid(self) -> int | None:
        """Patches along one side of the trained image, or None for native resolution."""
        return None if self.image_size is None else self.image_size // self.patch_size


@dataclass(frozen=True)
class TextConfig:
    """Sizes of a LiT text tower, which is always causal; `eos_token_id` ends every text.

    Raises CheckpointError for sizes that are not positive whole numbers or do not fit each other.
    """

    embed_dim: int
    mlp_hidden_dim: int
    num_blocks: int
    num_heads: int
    family: ClassVar[str] = "aimv2"  # of the trunk's blocks
    vocab_size: int = 49_408
    context_length: int = 77
    eos_token_id: int = 49_407
    rms_norm_eps: float = 1e-5

    def __post_init__(self):
        _check_sizes(self)
        _check_trunk(self)
        if type(self.eos_token_id) is not int or not 0 <= self.eos_token_id < self.vocab_size:
            raise CheckpointError(
                f"eos_token_id must be from 0 to {self.vocab_size - 1}, "
                f"got {self.eos_token_id!r:.80}: correct config.json"
            )


@dataclass(frozen=True)
class LiTConfig:
    """A vision encoder with attention pooling and a text tower, both projected to one space.

    `max_logit_scale` bounds exp(log_logit_scale) from above; it is bounded by 1 from below.
    """

    vision: VisionConfig
    text: TextConfig
    projection_dim: int
    max_logit_scale: float = 100.0

    def __post_init__(self):
        _check_sizes(self)
        if not is_real(self.max_logit_scale) or not 1 <= self.max_logit_scale <= 1e4:
            raise CheckpointError(
                f"max_logit_scale must be from 1 to 10000, got {self.max_logit_scale!r:.80}: "
                "correct config.json"
            )


@dataclass(frozen=True)
class LoRAConfig:
    """Adapters of an encoder: `targets` are of TARGETS, in the last `blocks` of its blocks."""

    rank: int
    scale: float
    targets: tuple[str, ...]
    blocks: int
    dropout: float = 0.0


@dataclass(frozen=True)
class PreprocessConfig:
    """How an image becomes pixels: resize, crop, scale to [0, 1], normalise with mean and std.

    `shortest_edge` and `crop_size` None (both) mean native resolution: the image keeps its size,
    cut down to whole patches of `patch_size`, and only sizes out of range are scaled. Where an odd
    number of pixels is cropped away, `crop_rounding` says on which side of its middle the crop
    begins: "floor" as transformers does, "half_even" as torchvision and timm do. `fit` is how the
    whole image becomes a square: "crop" cuts its centre, "squash" changes its aspect ratio, "pad"
    puts the mean colour around it.
    """

    shortest_edge: int | None
    crop_size: int | None
    crop_rounding: str = field(default="floor", kw_only=True)
    fit: str = field(default="crop", kw_only=True)
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    patch_size: int = 14

    def __post_init__(self):
        if (self.shortest_edge is None) != (self.crop_size is None):
            raise CheckpointError(
                "shortest_edge and crop_size must both be given (fixed size) or both be absent "
                f"(native), got {self.shortest_edge!r:.80} and {self.crop_size!r:.80}"
            )
        _check_sizes(self)
        if (self.crop_size or 0) > (self.shortest_edge or 0):
            raise CheckpointError(
                f"crop_size {self.crop_size} is larger than shortest_edge {self.shortest_edge}"
            )
        for name, known in {"crop_rounding": CROP_ROUNDINGS, "fit": FITS}.items():
            if getattr(self, name) not in known:
                raise CheckpointError(
                    f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r:.80}"
                )
        if self.fit != "crop" and (self.native or self.crop_size != self.shortest_edge):
            raise CheckpointError(
                f"fit {self.fit!r} needs a crop_size equal to shortest_edge, got "
                f"{self.crop_size} and {self.shortest_edge}"
            )
        for name in ("mean", "std"):
            values = getattr(self, name)
            listed = isinstance(values, (tuple, list)) and len(values) == 3
            if not listed or not all(map(is_real, values)):
                raise CheckpointError(f"{name} must be three finite numbers, got {values!r:.80}")
            object.__setattr__(self, name, tuple(float(v) for v in values))
        if any(not 1e-6 <= v <= 1e6 for v in self.std):  # smaller ones vanish in float32
            raise CheckpointError(
                f"std must be three numbers from 1e-6 to 1e6, got {self.std!r:.80}"
            )

    @property
    def native(self) -> bool:
        return self.crop_size is None

    @classmethod
    def published(cls, vision: VisionConfig) -> "PreprocessConfig":
        """What the published models of this family and size take."""
        if vision.family == "aimv1" and vision.image_size is not None:
            return cls.imagenet(vision.image_size, vision.patch_size)
        return cls.hub(vision.image_size, vision.patch_size)

    @classmethod
    def hub(cls, image_size: int | None, patch_size: int = 14) -> "PreprocessConfig":
        """What the published preprocessor_config.json files say."""
        return cls(image_size, image_size, CLIP_MEAN, CLIP_STD, patch_size)

    @classmethod
    def imagenet(cls, image_size: int, patch_size: int = 14) -> "PreprocessConfig":
        """What the paper's evaluation code does: resize to ceil(size / 0.875), ImageNet values.

        Source: apple/ml-aim, `val_transforms`, whose crop is torchvision's.
        """
        resized = math.ceil(image_size / 0.875)
        values = (IMAGENET_MEAN, IMAGENET_STD, patch_size)
        return cls(resized, image_size, *values, crop_rounding="half_even")


AnyConfig = VisionConfig | TextConfig | LiTConfig | PreprocessConfig
Config = TypeVar("Config", VisionConfig, TextConfig, LiTConfig, PreprocessConfig)
_NESTED = {"vision": VisionConfig, "text": TextConfig}  # the fields of LiTConfig that are configs


def to_dict(config: AnyConfig) -> dict[str, Any]:
    """Plain values for JSON, without what earlier versions did not know, where it is as it was."""

    def plain(values: list[tuple[str, Any]]) -> dict[str, Any]:
        kept = [pair for pair in values if pair not in (("family", "aimv2"), ("fit", "crop"))]
        return {k: list(v) if isinstance(v, tuple) else v for k, v in kept}

    return asdict(config, dict_factory=plain)


def from_dict(kind: type[Config], values: Any) -> Config:
    """Builds a config from parsed JSON; raises CheckpointError for unknown or bad fields."""
    if not isinstance(values, Mapping):
        raise CheckpointError(
            f"expected an object with the fields of {kind.__name__}, got {values!r:.80}"
        )
    known = {f.name for f in fields(kind)}
    if unknown := sorted(set(values) - known):
        raise CheckpointError(
            f"unknown field {unknown[0]!r} for {kind.__name__}: "
            f"known are {', '.join(sorted(known))}"
        )
    if kind is LiTConfig:
        values = {k: from_dict(_NESTED[k], v) if k in _NESTED else v for k, v in values.items()}
    try:
        return kind(**values)
    except TypeError as error:
        raise CheckpointError(f"{kind.__name__}: {error}") from error


def _check_sizes(config: Any) -> None:
    for name in [f.name for f in fields(config) if f.name in _LARGEST]:
        value, largest = getattr(config, name), _LARGEST[name]
        if value is None and name in _OPTIONAL:
            continue
        if type(value) is not int or not 1 <= value <= largest:
            raise CheckpointError(
                f"{name} must be a whole number from 1 to {largest}, got {value!r:.80}: "
                "correct the configuration"
            )


def _check_trunk(config: "VisionConfig | TextConfig") -> None:
    """What every trunk of blocks needs: heads that divide the width, a small positive epsilon."""
    if config.embed_dim % config.num_heads:
        raise CheckpointError(
            f"embed_dim {config.embed_dim} is not a multiple of num_heads {config.num_heads}: "
            "correct config.json"
        )
    if not is_real(config.rms_norm_eps) or not 0 < config.rms_norm_eps < 1:
        raise CheckpointError(
            f"rms_norm_eps must be between 0 and 1, got {config.rms_norm_eps!r:.80}: "
            "correct config.json"
        )


def is_real(value: Any) -> bool:
    """Whether a value is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
