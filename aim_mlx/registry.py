"""The published AIM models: sizes, preprocessing, where they are and under which licence."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from aim_mlx.config import LiTConfig, PreprocessConfig, TextConfig, VisionConfig
from aim_mlx.errors import UsageError

LICENCE = "apple-amlr"  # of the published weights; named apple-ascl before July 2025

# arXiv 2411.14402, table 1. The reference code also defines base, without weights.
_SIZES = {
    "base": (768, 2048, 12, 6),
    "large": (1024, 2816, 24, 8),
    "huge": (1536, 4096, 24, 12),
    "1B": (2048, 5632, 24, 16),
    "3B": (3072, 8192, 24, 24),
}

# name after "aimv2-", image size (None: native), IN-1k top-1 (arXiv 2411.14402: attentive probe on
# the frozen trunk; for LiT zero-shot), the Hub revision that holds the reference's layout.
_PUBLISHED = [
    ("large-patch14-224", 224, 86.6, "ac764a25c832c7dc5e11871daa588e98e3cdbfb7"),
    ("huge-patch14-224", 224, 87.5, "9e0bab0e0abb7b20796d2d0b37f39b7c3b1c1af1"),
    ("1B-patch14-224", 224, 88.1, "4d24a422f71e87d327d476bc405030fe6593d8b1"),
    ("3B-patch14-224", 224, 88.5, "df1cbc288096c9742ec8bd6709ff82757972338c"),
    ("large-patch14-336", 336, 87.6, "639423ae9f07319d24a7fc431b61908110d08d3a"),
    ("huge-patch14-336", 336, 88.2, "21528bd53a2438a84162e79f1f9a46453b88004c"),
    ("1B-patch14-336", 336, 88.7, "5a15f23f6757776fdd487283353a018677621939"),
    ("3B-patch14-336", 336, 89.2, "d1adb39ee92dfd7ecf3114b1ee3aa7e9027ce98f"),
    ("large-patch14-448", 448, 87.9, "cefb13f21003bdadba65bfbee956c82b976cd23d"),
    ("huge-patch14-448", 448, 88.6, "44e6440a24a8ea966ad0deadf5399a22d852bcc0"),
    ("1B-patch14-448", 448, 89.0, "7f292735d3a07a911559c0fabb3ad3e9d141713f"),
    ("3B-patch14-448", 448, 89.5, "70810b618e4456b724bacc8ef4d2d038060ceda6"),
    ("large-patch14-224-distilled", 224, None, "d6d09b071e8ba31735c5e05ccd4b2a393020ce90"),
    ("large-patch14-336-distilled", 336, None, "8fe1704e5cc1c80cefc99c194afcefe21dff1faa"),
    ("large-patch14-native", None, 87.3, "cfe7bdbbc924a5f65272d5e2c27fe5f61771a629"),
    ("large-patch14-224-lit", 224, 77.0, "c2cd59a786c4c06f39d199c50d08cc2eab9f8605"),
]
_LIT_TEXT = TextConfig(embed_dim=768, mlp_hidden_dim=2048, num_blocks=12, num_heads=6)
_LIT_PROJECTION = 768


# name after "aim-", (width, blocks, heads), IN-1k top-1 of a head on the last six blocks and of one
# on the best six, which of them is the first, the file in apple/AIM (arXiv 2401.08541).
_AIMV1 = [
    ("600M-2B-imgs", (1536, 24, 12), 78.5, 79.4, 14, "aim_600m_2bimgs_attnprobe_backbone.pth"),
    ("1B-5B-imgs", (2048, 24, 16), 80.6, 82.3, 12, "aim_1b_5bimgs_attnprobe_backbone.pth"),
    ("3B-5B-imgs", (3072, 24, 24), 82.2, 83.3, 12, "aim_3b_5bimgs_attnprobe_backbone.pth"),
    ("7B-5B-imgs", (4096, 32, 32), 82.4, 84.0, 14, "aim_7b_5bimgs_attnprobe_backbone.pth"),
]
# Trained by this package alone (examples/nano) and part of it, in float16: for drawings and icons,
# and to try things out.
_NANO = VisionConfig(192, 528, 6, 3, image_size=112)
_SHIPPED = {
    "aimv2-nano-patch14-112": _NANO,
    "aimv2-nano-patch14-112-lit": LiTConfig(
        _NANO, TextConfig(128, 352, 1, 2, 6_144, eos_token_id=6_143), 128
    ),
}
_ASSETS = Path(__file__).parent / "assets"
_HUB_FILE = "https://huggingface.co/apple/AIM/resolve/main"


@dataclass(frozen=True)
class ModelSpec:
    """One model; `repo` and `revision` are None where no weights are published as safetensors.

    `folder` is where those lie that the package brings.
    `pickle` is where a .pth file of AIMv1 is published, `best_layers` are the blocks whose mean
    serves a classifier best, and `best_top1` is what one reaches there; `top1` is that of the last
    six.
    """

    name: str
    config: VisionConfig | LiTConfig
    preprocess: PreprocessConfig
    repo: str | None
    revision: str | None
    licence: str
    top1: float | None
    pickle: str | None = None
    best_layers: tuple[int, ...] = ()
    best_top1: float | None = None
    folder: Path | None = None

    @property
    def family(self) -> str:
        """ "Nano", "AIMv2", "LiT" or "AIMv1"."""
        if self.folder is not None:
            return "Nano"
        if isinstance(self.config, LiTConfig):
            return "LiT"
        return "AIMv1" if self.config.family == "aimv1" else "AIMv2"

    @property
    def vision(self) -> VisionConfig:
        """The sizes of the vision encoder."""
        return self.config.vision if isinstance(self.config, LiTConfig) else self.config


def _spec(suffix: str, image_size: int | None, top1: float | None, revision: str | None):
    name = f"aimv2-{suffix}"
    config = vision = VisionConfig(*_SIZES[suffix.split("-")[0]], image_size=image_size)
    if suffix.endswith("-lit"):
        config = LiTConfig(vision, _LIT_TEXT, _LIT_PROJECTION)
    repo = f"apple/{name}" if revision else None
    preprocess = PreprocessConfig.published(vision)
    return ModelSpec(name, config, preprocess, repo, revision, LICENCE, top1)


def _shipped(name: str, config: VisionConfig | LiTConfig) -> ModelSpec:
    preprocess = PreprocessConfig.published(_NANO)
    return ModelSpec(name, config, preprocess, None, None, "MIT", None, folder=_ASSETS / name)


def _aimv1(
    suffix: str, sizes: tuple[int, int, int], top1: float, best: float, first: int, file: str
) -> ModelSpec:
    width, blocks, heads = sizes
    config = VisionConfig(width, 4 * width, blocks, heads, 14, 224, 1e-6, "aimv1")
    return ModelSpec(
        f"aim-{suffix}",
        config,
        PreprocessConfig.published(config),
        None,
        None,
        LICENCE,
        top1,
        f"{_HUB_FILE}/{file}",
        tuple(range(first, first + 6)),
        best,
    )


_SPECS = [
    *(_shipped(*row) for row in _SHIPPED.items()),
    *(_spec(*row) for row in _PUBLISHED),
    _spec("base-patch14-224", 224, None, None),
    *(_aimv1(*row) for row in _AIMV1),
]
MODELS: Mapping[str, ModelSpec] = MappingProxyType({spec.name: spec for spec in _SPECS})
DEFAULT_MODEL = "aimv2-large-patch14-224"
DEFAULT_LIT = "aimv2-large-patch14-224-lit"  # for what words are needed for
# What stands in for them while they are not downloaded.
STAND_INS = {
    DEFAULT_MODEL: "aimv2-nano-patch14-112",
    DEFAULT_LIT: "aimv2-nano-patch14-112-lit",
}


def find_model(name: str, what: str = "model") -> ModelSpec:
    """The model of that name; raises UsageError that suggests the nearest names.

    `what` says in it what else was looked for under that name.
    """
    if name in MODELS:
        return MODELS[name]
    near = difflib.get_close_matches(name, MODELS, n=3, cutoff=0.3)
    hint = f"did you mean {' or '.join(near)}?" if near else "'aim-mlx models' lists the models"
    raise UsageError(f"no {what} named {name!r:.200}: {hint}")
