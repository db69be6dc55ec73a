"""AIMv2 towers inside multimodal models: which tensors of a checkpoint are the tower, which not."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from aim_mlx.config import IMAGENET_MEAN, IMAGENET_STD, PreprocessConfig, VisionConfig
from aim_mlx.errors import CheckpointError
from aim_mlx.registry import MODELS
from aim_mlx.weights.layouts import LAYOUTS, PATCH_CONV, TOWER_LAYOUTS, layout_named
from aim_mlx.weights.preprocess_json import read_preprocessing
from aim_mlx.weights.rules import Layout
from aim_mlx.weights.strict_json import show

VISUAL_TOKENS = "visual tokens"  # the kind of the layouts of Ovis2's head and embedding table
_MOST_GROUPS = 8


@dataclass(frozen=True)
class Tower:
    """Where the models of a series keep their AIMv2 tower, and how they prepare images for it.

    All tensors of the tower, and no others, have names that begin with `prefix`. `fit` and
    `imagenet` (ImageNet's mean and standard deviation, not CLIP's) count where no file says more.
    """

    series: str
    layout: str
    prefix: str
    fit: str
    imagenet: bool = False

    def holds(self, name: str) -> bool:
        """Whether a tensor belongs to the tower."""
        return name.startswith(self.prefix)

    @property
    def visual_tokens(self) -> Layout | None:
        """Where Ovis2's head and embedding table are; None for other series."""
        kinds = {each.kind: each for each in TOWER_LAYOUTS if each.name == self.layout}
        return kinds.get(VISUAL_TOKENS)

    def preprocessing(self, folder: Path, config: VisionConfig) -> PreprocessConfig:
        """What the files in its folder state, else what the series' own code does.

        Raises CheckpointError for what cannot be done here.
        """
        stated = read_preprocessing(folder, config.patch_size, pads=self.fit == "pad")
        if stated is not None:
            return stated
        default = replace(
            PreprocessConfig.hub(config.image_size, config.patch_size),
            fit="crop" if config.native else self.fit,
        )
        if self.imagenet:
            return replace(default, mean=IMAGENET_MEAN, std=IMAGENET_STD)
        return default


# Sources: AIDC-AI/Ovis2-1B (whose code pads), transformers' Ovis2ImageProcessor without tiles, and
# the page of BytedanceDouyinContent/SAIL-VL-1.6-8B.
TOWERS = (
    Tower("Ovis2", "ovis2", "visual_tokenizer.backbone.", "pad"),
    Tower("Ovis2", "ovis2-transformers", "model.vision_tower.transformer.", "squash"),
    Tower("SAIL-VL", "sail-vl", "vision_model.", "squash", imagenet=True),
)


def find_tower(names: Collection[str]) -> Tower | None:
    """The tower that tensors of these names hold, None for those of an encoder by itself.

    Raises CheckpointError for more than one tower, or a tower beside an encoder.
    """
    found = {tower: name for tower in TOWERS if (name := _first(tower, names)) is not None}
    if not found:
        return None
    alone = next((name for name in _PATCH_CONVS if name in names), None)
    places = [*found.values(), *([alone] if alone else [])]
    if len(places) > 1:
        raise CheckpointError(
            f"more than one AIMv2 tower in one checkpoint, with {' and '.join(map(show, places))}: "
            "expected one; save the one that you mean by itself"
        )
    return next(iter(found))


def _first(tower: Tower, names: Iterable[str]) -> str | None:
    """The first tensor that is named as one of the tower's."""
    layout = layout_named(tower.layout)
    return next((n for n in names if tower.holds(n) and layout.rule_for(n) is not None), None)


_PATCH_CONVS = {
    name
    for layout in LAYOUTS
    if layout.kind == "vision"
    for name in layout.source_names(PATCH_CONV)
}


def tower_shards(weight_map: Mapping[str, str], visual_tokens: bool = False) -> set[str]:
    """The files of an index that hold its tower, all for an encoder by itself.

    With `visual_tokens` those of Ovis2's head and embedding table too. Raises CheckpointError as
    `find_tower`.
    """
    tower = find_tower(weight_map)
    if tower is None:
        return set(weight_map.values())
    more = tower.visual_tokens if visual_tokens else None
    return {
        shard
        for name, shard in weight_map.items()
        if tower.holds(name) or (more is not None and more.rule_for(name) is not None)
    }


def groups_beside(tower: Tower, names: Iterable[str]) -> dict[str, int]:
    """The tensors that are not the tower's, counted by how their names begin; largest first."""
    counts = Counter(_group(tower.prefix, name) for name in names if not tower.holds(name))
    largest = dict(counts.most_common(_MOST_GROUPS))
    if rest := counts.total() - sum(largest.values()):
        largest["others"] = rest
    return largest


def _group(prefix: str, name: str) -> str:
    """The parts of a name that the tower's have too, and one more."""
    parts, common = name.split("."), 0
    for part, other in zip(parts, prefix.split("."), strict=False):
        if part != other:
            break
        common += 1
    return show(".".join(parts[: common + 1]))[1:-1]


def described(tower: Tower, config: VisionConfig) -> str:
    """A sentence: what the checkpoint is, and what its tower is."""
    size = f"AIMv2 of width {config.embed_dim} and {config.num_blocks} blocks"
    for spec in MODELS.values():
        if replace(spec.vision, image_size=config.image_size) == config:
            size = f"AIMv2-{spec.name.split('-')[1]}"
    pixels = "native resolution" if config.native else f"{config.image_size} pixels"
    article = "an" if tower.series[0] in "AEIO" else "a"
    return f"{article} {tower.series} checkpoint: its tower is {size} at {pixels}"
