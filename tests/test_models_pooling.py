"""From tokens to one vector."""

from typing import get_args

import numpy as np
import pytest

from aim_mlx.backend import mx
from aim_mlx.cli import options
from aim_mlx.errors import UsageError
from aim_mlx.models.pooling import ALL_POOLINGS, POOLINGS, pool

TOKENS = np.random.default_rng(0).normal(size=(2, 7, 5)).astype(np.float32)


def test_mean_and_max_are_taken_over_the_tokens():
    np.testing.assert_allclose(pool(mx.array(TOKENS), "mean"), TOKENS.mean(1), atol=1e-6)
    np.testing.assert_allclose(pool(mx.array(TOKENS), "max"), TOKENS.max(1), atol=0)


def test_gem_is_the_cubic_mean_of_the_positive_part():
    expected = (np.maximum(TOKENS, 1e-6) ** 3).mean(1) ** (1 / 3)
    np.testing.assert_allclose(pool(mx.array(TOKENS), "gem"), expected, rtol=1e-4)


def test_half_precision_tokens_are_pooled_in_float32():
    assert pool(mx.array(TOKENS).astype(mx.float16), "mean").dtype == mx.float32


@pytest.mark.parametrize(
    ("method", "reason"),
    [("cls", "no CLS token"), ("attention", "no attention pool"), ("median", "must be one of")],
)
def test_an_impossible_pooling_is_refused_with_its_reason(method, reason):
    with pytest.raises(UsageError, match=reason):
        pool(mx.array(TOKENS), method)


def test_every_pooling_gives_one_vector_an_image():
    for method in POOLINGS:
        assert pool(mx.array(TOKENS), method).shape == (2, 5)


def test_the_help_names_every_pooling():
    (_, option) = get_args(options.Pooling)
    assert all(method in option.help for method in ALL_POOLINGS)
