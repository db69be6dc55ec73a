"""Random views of an image."""

import numpy as np
import pytest
from PIL import Image

from aim_mlx.images import randaugment
from aim_mlx.images.augment import augmented
from aim_mlx.images.randaugment import rand_augmented
from tests.small import photo

PICTURE = Image.fromarray(photo(1, 56, 56))


def changed(seed: int, **options) -> np.ndarray:
    return np.asarray(augmented(PICTURE, 56, np.random.default_rng(seed), **options))


def test_a_view_with_further_changes_is_the_same_for_the_same_seed():
    views = [changed(seed, randaugment=True) for seed in range(20)]
    assert all(view.shape == (56, 56, 3) and view.dtype == np.uint8 for view in views)
    assert np.array_equal(views[3], changed(3, randaugment=True))
    plain = [changed(seed) for seed in range(20)]
    apart = [np.abs(a.astype(int) - b).mean() for a, b in zip(views, plain, strict=True)]
    # Each of two changes is left out half of the time.
    assert 0 in apart and sum(each > 0 for each in apart) > 10


@pytest.mark.parametrize("number", range(len(randaugment._OPERATIONS)))
def test_every_change_shows_and_keeps_the_size(number):
    for sign in (-1, 1):
        image = randaugment._OPERATIONS[number](PICTURE, 0.9, sign)
        assert image.size == PICTURE.size and image.mode == "RGB"
        assert np.abs(np.asarray(image).astype(int) - np.asarray(PICTURE)).mean() > 0.5


def test_each_change_is_drawn():
    drawn = set()
    for number in range(len(randaugment._OPERATIONS)):

        def note(image, strength, sign, number=number):
            assert 0.6 < strength <= 1 and sign in (-1, 1)
            drawn.add(number)
            return image

        drawn.clear()
        with pytest.MonkeyPatch.context() as patch:
            changes = list(randaugment._OPERATIONS)
            changes[number] = note
            patch.setattr(randaugment, "_OPERATIONS", tuple(changes))
            for seed in range(60):
                rand_augmented(PICTURE, np.random.default_rng(seed))
        assert drawn == {number}
