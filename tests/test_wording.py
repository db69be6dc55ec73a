"""Counts in words."""

import pytest

from aim_mlx.wording import counted


@pytest.mark.parametrize(
    ("count", "words"), [(0, "0 photos"), (1, "1 photo"), (2, "2 photos"), (1234, "1,234 photos")]
)
def test_one_is_singular_and_all_others_are_plural(count, words):
    assert counted(count, "photo") == words


def test_a_plural_of_its_own_is_taken():
    assert counted(1, "photo is", "photos are") == "1 photo is"
    assert counted(2, "photo is", "photos are") == "2 photos are"
