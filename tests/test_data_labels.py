"""Labels beside images in memory: paired, named, numbered, held out."""

import numpy as np
import pytest

from aim_mlx.data.labels import as_labels, classes_of, held_out, paired
from aim_mlx.errors import UsageError

IMAGES = ["1.jpg", "2.jpg", "3.jpg"]


@pytest.mark.parametrize("count", [2, 4])
def test_every_image_needs_its_label(count):
    with pytest.raises(UsageError, match=f"a label for each of 3 images, got {count}"):
        paired(IMAGES, ["cat"] * count)


@pytest.mark.parametrize("label", [3, None, b"cat", [3], np.int64(3)])
def test_a_label_of_another_kind_is_refused(label):
    with pytest.raises(UsageError, match=r"a name or a list of names, got .*: use str\(\)"):
        paired(IMAGES, ["cat", "dog", label])


def test_half_a_character_is_refused():
    with pytest.raises(UsageError, match="holds half a character"):
        paired(IMAGES, ["cat", "dog", "\ud800"])


def test_names_and_lists_of_names_cannot_be_mixed():
    with pytest.raises(UsageError, match="all be names, or all be lists"):
        paired(IMAGES, ["cat", "dog", ["cat"]])
    with pytest.raises(UsageError, match="expected lists of names"):
        as_labels(["cat"], ("cat", "t"), multi_label=True)


def test_labels_of_numpy_and_images_of_a_generator_become_lists():
    images, labels = paired((each for each in IMAGES), np.array(["cat", "dog", "cat"]))
    assert images == IMAGES and labels == ["cat", "dog", "cat"]
    assert all(type(each) is str for each in labels)


def test_several_names_have_no_order_and_no_repeats():
    _, labels = paired(IMAGES, [["sky", "sea", "sky"], {"sea", "sky"}, []])
    assert labels == [("sea", "sky"), ("sea", "sky"), ()]
    assert classes_of(labels) == (("sea", "sky"), True)
    np.testing.assert_array_equal(as_labels(labels, ("sea", "sky"), True), [[1, 1], [1, 1], [0, 0]])


def test_a_fifth_of_each_class_is_held_out():
    labels = ["cat"] * 10 + ["dog"] * 2 + ["owl"]
    kept, held = held_out(labels, seed=0)
    assert sorted(kept + held) == list(range(13))
    assert sorted(labels[i] for i in held) == ["cat", "cat", "dog"]
