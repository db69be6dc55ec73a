"""What is measured of a model on the pictures of gather.py, and on handwritten digits."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from aim_mlx.backend import mx
from aim_mlx.data.labelled import Labelled
from aim_mlx.data.pairs import Pairs
from aim_mlx.encoder.encoder import Encoder
from aim_mlx.lit_training.evaluation import KS, recalls
from aim_mlx.models.pooling import normalized
from aim_mlx.models.vision import VisionEncoder
from aim_mlx.probe.knn import knn_scores
from aim_mlx.probe.probe import AttentiveProbe
from aim_mlx.report.figures import measured, wilson
from aim_mlx.weights.initial import initial_weights
from aim_mlx.words.lit import LiT
from aim_mlx.words.zeroshot import ZeroShotHead

NEIGHBOURS = (10, 20)
PROBE_SEEDS = (0, 1, 2)
PROBE: dict[str, Any] = {"learning_rates": (1e-3, 3e-3, 1e-2)}  # beside what the fast protocol says
TRAINING_DIGITS = 897  # the first; the other 900 test
TEMPLATES = {
    "subgroup": ("{}",),
    # As in training: alone, at the start of a caption, and in the sentences that name things.
    "subgroup, 6 templates": (
        "{}",
        "{}:",
        "a drawing of {}",
        "an icon of {}",
        "a picture of {}",
        "{} emoji",
    ),
}
Vectors = Callable[[Sequence[str]], np.ndarray]  # of paths, float32 (n, D) of length 1


@dataclass(frozen=True)
class Share:
    """The share that is right, with its interval of 95%, after Wilson, for so many trials.

    With several seeds `value` is their mean. Their trials are the same, so they count once.
    """

    value: float
    interval: tuple[float, float]
    trials: int
    seeds: tuple[float, ...]

    @classmethod
    def of(cls, trials: int, *seeds: float) -> "Share":
        value = float(np.mean(seeds))
        low, high = wilson(round(value * trials), trials)
        return cls(value, (low, high), trials, seeds)


def embedder(encoder: Encoder, pooling: str) -> Vectors:
    """A function from paths to vectors that embeds no path twice."""
    known: dict[str, np.ndarray] = {}

    def vectors(paths: Sequence[str]) -> np.ndarray:
        new = [path for path in dict.fromkeys(paths) if path not in known]
        known.update(zip(new, encoder.embed(new, pooling=pooling), strict=True))
        return np.stack([known[path] for path in paths])

    return vectors


def recall(
    pairs: Pairs, images: np.ndarray, texts: Callable[[list[str]], np.ndarray]
) -> dict[str, Share]:
    """Text to image: each name asks once for one of its pictures among all.

    `images` (n, P) are those of the pairs, `texts` gives the unit vectors of names. A name succeeds
    at k if any of its pictures is among the k most alike; ties count against it. Pictures of the
    same content are one, which then has several names.
    """
    names, place = np.unique(np.array(pairs.captions, object), return_inverse=True)
    match = np.zeros((len(pairs.paths), len(names)), bool)
    match[pairs.images, place] = True
    found = recalls(images, texts(names.tolist()), match)
    return {f"recall@{k}": Share.of(len(names), found[f"text_to_image_recall@{k}"]) for k in KS}


def words(lit: LiT, pairs: Pairs, vectors: Vectors) -> dict[str, Share]:
    """The recall of a model's own vectors."""

    def texts(names: list[str]) -> np.ndarray:
        return np.array(normalized(lit.encode_text(names)))

    return recall(pairs, vectors(pairs.paths), texts)


def kinds_of(pairs: Pairs, data: Labelled) -> dict[str, str]:
    """The class of each name; both are of the same pictures."""
    known = {item.path: item.labels[0] for item in data.items}
    found = zip(pairs.captions, pairs.images, strict=True)
    return {name: known[pairs.paths[image]] for name, image in found}


def zero_shot(
    lit: LiT, data: Labelled, kinds: Mapping[str, str], concepts: int, vectors: Vectors
) -> dict[str, Share]:
    """The share of pictures whose subgroup is named right, by one template and by several.

    And by the names of what is in each: `kinds` has the subgroup of names of things, whose
    probabilities are added up. The interval is for as many trials as there are concepts: pictures
    of one concept in several styles are right or wrong together.
    """
    images = vectors([item.path for item in data.items])
    truth = np.array([data.classes.index(item.labels[0]) for item in data.items])
    scores = {
        figure: ZeroShotHead.build(lit, data.classes, templates).scores(images)
        for figure, templates in TEMPLATES.items()
    }
    members = np.array([*kinds.values()])[:, None] == np.array(data.classes)
    scores["subgroup, by its members"] = (
        ZeroShotHead.build(lit, [*kinds], ("{}",)).scores(images) @ members
    )
    return {figure: Share.of(concepts, measured(each, truth)) for figure, each in scores.items()}


def digits(side: int) -> tuple[list[Image.Image], np.ndarray]:
    """scikit-learn's 1,797 scans of 8 x 8 pixels, enlarged, dark on white; and what they are."""
    scans, labels = load_digits(return_X_y=True)
    grey = (255 - scans.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    bicubic = Image.Resampling.BICUBIC
    return [Image.fromarray(each).resize((side, side), bicubic) for each in grey], labels


def on_digits(encoder: Encoder) -> dict[str, Share]:
    """The share of digits that neighbours and attentive probes name right."""
    grid = encoder.model.config.grid
    images, labels = digits(encoder.model.config.patch_size * (grid or 0))
    train, test = slice(TRAINING_DIGITS), slice(TRAINING_DIGITS, None)
    vectors, truth = encoder.embed(images, pooling="mean"), labels[test]
    votes = knn_scores(vectors[train], labels[train], vectors[test], 10, NEIGHBOURS)
    found = {f"{k}-NN": Share.of(len(truth), measured(votes[k], truth)) for k in NEIGHBOURS}
    names = [str(label) for label in labels]
    right = []
    for seed in PROBE_SEEDS:
        probe = AttentiveProbe.train(encoder, images[train], names[train], seed=seed, **PROBE)
        right.append(measured(probe.predict_proba(images[test]), truth))
    return {**found, "attentive probe": Share.of(len(truth), *right)}


def across_styles(encoder: Encoder, train: dict[str, str], pairs: Pairs) -> dict[str, Share]:
    """How often the nearest of some training pictures shows the concept of a held-out picture.

    `train` has the concept's name by path. Concepts without a picture there are not asked for.
    """
    classes = sorted(set(train.values()))
    number = {name: place for place, name in enumerate(classes)}
    asked = [row for row, name in enumerate(pairs.captions) if name in number]
    vectors = embedder(encoder, "mean")
    votes = knn_scores(
        vectors(list(train)),
        np.array([number[name] for name in train.values()]),
        vectors([pairs.paths[pairs.images[row]] for row in asked]),
        len(classes),
        (1,),
    )
    truth = np.array([number[pairs.captions[row]] for row in asked])
    return {"same concept, 1-NN": Share.of(len(asked), measured(votes[1], truth))}


def random_encoder(like: Encoder, seed: int) -> Encoder:
    """An encoder of the same sizes and preprocessing that has learned nothing."""
    model = VisionEncoder(like.model.config)
    model.load_weights(list(initial_weights(like.model.config, seed)), strict=True)
    mx.eval(model.parameters())
    mx.eval(mx.random.state)  # making the layers drew numbers that were never computed
    return Encoder(model, like.preprocessing, trained=False, identity={"model": "random weights"})
