"""The digest of a model's parameters."""

import aim_mlx
from tests.small import save
from tests.weights_files import DATA


def test_it_is_the_same_in_every_layout_and_another_for_other_weights(tmp_path):
    layouts = ("ml_aim_mlx", "ml_aim_torch", "transformers", "timm")
    digests = {aim_mlx.load(DATA / "vision_absolute" / name).weights_digest for name in layouts}
    assert len(digests) == 1
    assert aim_mlx.load(save(tmp_path / "m")).weights_digest not in digests


def test_it_is_of_the_numbers_that_are_used(tmp_path):
    folder = save(tmp_path / "m")
    digests = {
        aim_mlx.load(folder, dtype=d).weights_digest for d in ("float32", "float16", "bfloat16")
    }
    assert len(digests) == 3 and all(len(digest) == 64 for digest in digests)
    encoder = aim_mlx.load(folder)
    norm = encoder.model.trunk.post_trunk_norm
    norm.weight = norm.weight * 1.5
    assert encoder.weights_digest not in digests
