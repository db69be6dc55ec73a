"""What the benchmark of fine-tuning trains and tests on."""

import numpy as np
from PIL import Image

from benchmarks.finetune_helps import Set, write_set


def test_shuffled_labels_are_dealt_out_and_no_image_is_on_both_sides(tmp_path):
    rng = np.random.default_rng(0)
    pixels = {name: rng.integers(0, 256, (12, 4, 4), np.uint8) for name in ("a", "b")}
    images = {name: [Image.fromarray(one) for one in each] for name, each in pixels.items()}
    write_set(tmp_path, Set(lambda _: images, 8, 4), images)
    names = {
        f"{kind}/{split}": {p.name: p.parent.name for p in (tmp_path / kind / split).rglob("*.png")}
        for kind in ("right", "shuffled")
        for split in ("train", "test")
    }
    for split, count in (("train", 8), ("test", 4)):
        right, shuffled = names[f"right/{split}"], names[f"shuffled/{split}"]
        assert right.keys() == shuffled.keys() and right != shuffled
        assert sorted(right.values()) == ["a"] * count + ["b"] * count == sorted(shuffled.values())
    assert not names["right/train"].keys() & names["right/test"].keys()
