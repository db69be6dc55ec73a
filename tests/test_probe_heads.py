"""The heads of probes: folded, and equal to what they stand for."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from aim_mlx.backend import mx, nn
from aim_mlx.errors import CheckpointError, UsageError
from aim_mlx.models import query_attention as folded
from aim_mlx.models.query_attention import attend_folded, query_gradient
from aim_mlx.probe.head_files import load_head
from aim_mlx.probe.heads import KINDS, HeadConfig, flat, measure, new_head
from tests.probes import noisy_head, noisy_tokens, plain

GOLDEN = Path(__file__).parent / "data" / "aimv1_probe"

# Sums of tens of terms near one, in another order: 1e-6, and a few of them follow each other.
CLOSE = 1e-5


def assert_close(ours, theirs, tolerance: float = CLOSE) -> None:
    apart = np.abs(np.array(ours, np.float64) - np.array(theirs, np.float64))
    assert apart.max() <= tolerance, f"largest {apart.max():.2e}, mean {apart.mean():.2e}"


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("batch_norm", [False, True], ids=["raw", "normalised"])
@pytest.mark.parametrize("queries", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_a_head_equals_the_plain_one_in_output_and_gradient(kind, queries, batch_norm, mode):
    head = noisy_head(kind=kind, queries=queries, batch_norm=batch_norm)
    head.train(mode == "train")
    tokens = mx.array(noisy_tokens()).astype(mx.float32)
    upstream = mx.array(np.random.default_rng(1).normal(size=(11, 5)).astype(np.float32))
    results = []
    for forward in (lambda: head(tokens), lambda: plain(head, tokens)):
        before = flat(head.parameters())
        results.append(
            (forward(), nn.value_and_grad(head, lambda f=forward: (f() * upstream).sum())())
        )
        head.load_weights(list(before.items()))
    (ours, (_, our_gradient)), (theirs, (_, their_gradient)) = results
    assert np.abs(np.array(theirs)).max() > 0.3
    assert_close(ours, theirs)
    assert flat(our_gradient).keys() == flat(their_gradient).keys()
    for name, expected in flat(their_gradient).items():
        scale = max(1.0, float(mx.abs(expected).max()))
        assert_close(flat(our_gradient)[name] / scale, expected / scale)


def test_attention_has_a_gradient_for_tokens_and_weights_too():
    rng = np.random.default_rng(0)
    tokens, queries, of_means, of_weights = (
        mx.array(rng.normal(size=shape).astype(np.float32))
        for shape in ((3, 5, 8), (4, 8), (3, 4, 8), (3, 5, 4))
    )

    def ours(tokens, queries):
        means, weights = attend_folded(tokens, queries)
        return (means * of_means).sum() + (weights * of_weights).sum()

    def automatic(tokens, queries):
        weights = mx.softmax(tokens @ queries.T, axis=1)
        return ((weights.swapaxes(1, 2) @ tokens) * of_means).sum() + (weights * of_weights).sum()

    for which in (0, 1):
        found = (mx.grad(each, which)(tokens, queries) for each in (ours, automatic))
        assert_close(*found)


@pytest.mark.parametrize("of", ["means", "weights", "both"])
def test_products_divided_into_some_tokens_at_a_time_give_the_same(monkeypatch, of):
    rng = np.random.default_rng(0)
    tokens, queries, of_means, of_weights = (
        mx.array(rng.normal(size=shape).astype(np.float32))
        for shape in ((3, 6, 8), (4, 8), (3, 4, 8), (3, 6, 4))
    )

    def loss(tokens, queries):
        means, weights = attend_folded(tokens, queries)
        parts = {"means": (means * of_means).sum(), "weights": (weights * of_weights).sum()}
        return sum(parts.values()) if of == "both" else parts[of]

    found = []
    for rows in (6, 2):
        monkeypatch.setattr(folded, "_rows_at_once", lambda shape, K, rows=rows: rows)
        found.append([*attend_folded(tokens, queries), *mx.grad(loss, (0, 1))(tokens, queries)])
        found[-1].append(query_gradient(tokens, found[-1][1], of_means))
    assert all(float(mx.abs(each).max()) > 0.1 for each in found[0])
    for one, other in zip(*found, strict=True):
        assert_close(one, other)


@pytest.mark.parametrize(("tokens", "K"), [(256, 8), (196, 8), (251, 8), (256, 9), (729, 2)])
def test_tokens_are_divided_evenly_and_never_into_crumbs(tokens, K):
    rows = folded._rows_at_once((2, tokens, 1024), K)
    assert tokens % rows == 0 and rows >= 32
    assert rows * K * 1024 <= 10**6 or rows == tokens


def test_large_scores_do_not_overflow():
    tokens = mx.array(noisy_tokens()).astype(mx.float32) * 1e4
    means, weights = attend_folded(tokens, mx.ones((2, 32)))
    assert np.isfinite(np.array(means)).all()
    assert_close(weights.sum(axis=1), np.ones((11, 2)))


def test_moments_far_from_zero_are_exact():
    tokens = noisy_tokens().astype(np.float32) + 100
    found = measure(mx.array(tokens))
    assert found.count == 66
    assert_close(found.mean, tokens.mean((0, 1), np.float64), 1e-4)
    assert_close(found.variance, tokens.astype(np.float64).var((0, 1)), 1e-4)


def test_the_running_moments_follow_a_tenth_of_the_way_with_the_unbiased_variance():
    head = noisy_head(batch_norm=True)
    mean, variance = np.array(head.bn.running_mean), np.array(head.bn.running_var)
    tokens = noisy_tokens().astype(np.float32)
    head(mx.array(tokens))
    assert_close(head.bn.running_mean, 0.9 * mean + 0.1 * tokens.mean((0, 1)))
    assert_close(head.bn.running_var, 0.9 * variance + 0.1 * tokens.var((0, 1), ddof=1))


def test_attention_weights_sum_to_one_and_say_what_the_output_is_made_of():
    head = noisy_head(queries=2, batch_norm=True)
    head.eval()
    tokens = mx.array(noisy_tokens())
    weights = np.array(head.attention(tokens))
    assert weights.shape == (11, 8, 6)
    assert_close(weights.sum(-1), np.ones((11, 8)))
    means = weights @ noisy_tokens().astype(np.float32)
    found = mx.array(means.swapaxes(0, 1))
    assert_close(head.classify(found, head.bn.normalisation), head(tokens))


def test_a_linear_head_has_no_attention():
    with pytest.raises(UsageError, match="no attention"):
        noisy_head(kind="mean").attention(mx.array(noisy_tokens()))


def test_a_new_head_is_the_same_for_a_seed():
    config = HeadConfig(32, 5, 4, batch_norm=True)
    one, same, other = (flat(new_head(config, seed).parameters()) for seed in (3, 3, 4))
    assert all((np.array(one[name]) == np.array(same[name])).all() for name in one)
    assert not (np.array(one["k.weight"]) == np.array(other["k.weight"])).all()
    assert float(mx.abs(one["linear.bias"]).max()) == 0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"kind": "cls"}, "must be one of attentive"),
        ({"heads": 3}, "not a multiple"),
        ({"queries": 0}, "queries must be"),
        ({"classes": True}, "classes must be"),
    ],
)
def test_impossible_heads_are_refused(wrong, message):
    with pytest.raises(UsageError, match=message):
        HeadConfig(**{"dim": 32, "classes": 5, "heads": 4, **wrong})


def golden() -> dict[str, np.ndarray]:
    return safetensors.numpy.load_file(GOLDEN / "io.safetensors")


def test_a_published_head_gives_the_reference_logits():
    head, case = load_head(GOLDEN / "head.safetensors", heads=2), golden()
    tokens = (case["block_1"] + case["block_2"]) / 2
    assert_close(head(mx.array(tokens)), case["logits"], 1e-4)
    assert head.config == HeadConfig(64, 7, 2, batch_norm=True, bias=False)


def changed(tmp_path: Path, change) -> Path:
    tensors = safetensors.numpy.load_file(GOLDEN / "head.safetensors")
    change(tensors)
    safetensors.numpy.save_file(tensors, tmp_path / "head.safetensors")
    return tmp_path / "head.safetensors"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("head.v.weight"), "missing tensor head.v.weight"),
        (lambda t: t.pop("head.bn.running_var"), "missing tensor head.bn.running_var"),
        (lambda t: t.update({"head.extra": t["head.v.weight"]}), "unexpected tensor 'head.extra'"),
        (lambda t: t.update({"trunk.x": t["head.v.weight"]}), "unexpected tensor 'trunk.x'"),
        (lambda t: t.update({"head.v.weight": t["head.v.weight"][:3]}), "shape"),
        (lambda t: t.update({"head.k.weight": t["head.k.weight"] * np.nan}), "NaN"),
        (lambda t: t.update({"head.k.weight": t["head.k.weight"].astype(int)}), "floats"),
        (lambda t: t.update({"head.cls_token": t["head.cls_token"][0, 0]}), "expected head.cls"),
        (lambda t: t.pop("head.k.weight"), "missing tensor head.k.weight"),
        (lambda t: t.clear(), "missing tensor"),
    ],
)
def test_a_head_file_that_is_not_exactly_a_head_is_refused(tmp_path, change, message):
    with pytest.raises(CheckpointError, match=message):
        load_head(changed(tmp_path, change), heads=2)


def test_pytorchs_batch_counter_and_half_precision_are_read(tmp_path):
    def change(tensors):
        for name in tensors:
            tensors[name] = tensors[name].astype(np.float16)
        tensors["head.bn.num_batches_tracked"] = np.array(7, np.int64)

    head = load_head(changed(tmp_path, change), heads=2)
    assert head.k.weight.dtype == mx.float32
    tokens = (golden()["block_1"] + golden()["block_2"]) / 2
    assert_close(head(mx.array(tokens)), golden()["logits"], 0.02)  # float16 weights


def test_a_head_of_several_queries_without_keys_is_one_of_efficient_probing(tmp_path):
    head = noisy_head(kind="ep", queries=4, batch_norm=True)
    head.eval()
    tensors = {f"head.{name}": np.array(value) for name, value in flat(head.parameters()).items()}
    safetensors.numpy.save_file(tensors, tmp_path / "head.safetensors")
    found = load_head(tmp_path / "head.safetensors")
    assert found.config == HeadConfig(32, 5, 1, 4, "ep", batch_norm=True)
    tokens = mx.array(noisy_tokens())
    assert_close(found(tokens), head(tokens), 0)
    weights = np.array(found.attention(tokens))
    assert weights.shape == (11, 4, 6)
    assert_close(weights.sum(axis=2), np.ones((11, 4)))


def test_queries_must_divide_the_values_they_average():
    with pytest.raises(UsageError, match="dim 32 is not a multiple of queries 3"):
        HeadConfig(32, 5, 4, 3, "ep")


def test_heads_are_counted_by_128_channels_or_asked_for(tmp_path):
    shutil.copy(GOLDEN / "head.safetensors", tmp_path)
    with pytest.raises(CheckpointError, match="heads="):
        load_head(tmp_path / "head.safetensors")
