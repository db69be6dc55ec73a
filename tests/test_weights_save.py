"""Our folder format: what is saved opens again as it was, or nothing is left behind."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors

from aim_mlx.backend import mx
from aim_mlx.config import LiTConfig, PreprocessConfig, TextConfig, VisionConfig
from aim_mlx.errors import CheckpointError, OutputError
from aim_mlx.weights.checkpoint import open_checkpoint
from aim_mlx.weights.initial import initial_weights
from aim_mlx.weights.load import load_weights
from aim_mlx.weights.safetensors_writer import SafetensorsWriter
from aim_mlx.weights.save import provenance, save_checkpoint
from aim_mlx.weights.sizes import expected_shapes
from tests.full_disk import full_from
from tests.weights_files import DATA, edit_json

CONFIG = VisionConfig(64, 176, 3, 2, 14, 56)
PREPROCESS = PreprocessConfig.hub(56)


@pytest.fixture(scope="module")
def weights() -> dict[str, mx.array]:
    return load_weights(open_checkpoint(DATA / "vision_absolute" / "transformers"))


@pytest.fixture
def saved(tmp_path: Path, weights) -> Path:
    facts = provenance("x", "transformers")
    return save_checkpoint(tmp_path / "model", weights, CONFIG, PREPROCESS, facts)


def same(a: dict[str, mx.array], b: dict[str, mx.array]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype and mx.array_equal(a[name], b[name]).item(), name


def test_a_saved_folder_opens_as_it_was(saved: Path, weights):
    checkpoint = open_checkpoint(saved)
    assert checkpoint.layout == "ml-aim-mlx"
    assert checkpoint.config == CONFIG and checkpoint.preprocess == PREPROCESS
    assert checkpoint.provenance["source"] == "x" and checkpoint.provenance["aim_mlx"]
    assert checkpoint.trained
    same(load_weights(checkpoint), weights)


def test_a_saved_folder_holds_two_files_and_nothing_else(saved: Path):
    assert sorted(p.name for p in saved.iterdir()) == ["config.json", "model.safetensors"]
    values = json.loads((saved / "config.json").read_text())
    assert list(values) == [
        "format",
        "format_version",
        "kind",
        "encoder",
        "preprocessing",
        "provenance",
    ]


def test_the_saved_file_is_read_by_safetensors_itself(saved: Path, weights):
    with safetensors.safe_open(str(saved / "model.safetensors"), framework="numpy") as file:
        assert file.metadata()["aim_mlx_trained"] == "true"
        for name in file.keys():
            assert np.array_equal(file.get_tensor(name), np.array(weights[name]))


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16, mx.float32])
def test_a_dtype_given_is_the_one_saved(tmp_path: Path, weights, dtype: mx.Dtype):
    folder = save_checkpoint(tmp_path / "m", weights, CONFIG, PREPROCESS, dtype=dtype)
    cast = {name: array.astype(dtype) for name, array in weights.items()}
    assert open_checkpoint(folder).dtype == str(dtype).split(".")[-1]
    same(load_weights(open_checkpoint(folder), dtype), cast)


def test_weights_of_two_dtypes_keep_them(tmp_path: Path, weights):
    name = "trunk.post_trunk_norm.weight"
    mixed = weights | {name: weights[name].astype(mx.float16)}
    folder = save_checkpoint(tmp_path / "m", mixed, CONFIG, PREPROCESS)
    assert open_checkpoint(folder).dtype == "mixed"


def test_pairs_are_written_as_they_come_in_any_order(tmp_path: Path, weights):
    pairs = iter(sorted(weights.items(), reverse=True))
    folder = save_checkpoint(tmp_path / "m", pairs, CONFIG, PREPROCESS)
    same(load_weights(open_checkpoint(folder)), weights)


def test_a_native_model_is_saved_without_positions(tmp_path: Path, weights):
    native = {k: v for k, v in weights.items() if k != "preprocessor.pos_embed"}
    config = VisionConfig(64, 176, 3, 2, 14, None)
    folder = save_checkpoint(tmp_path / "m", native, config, PreprocessConfig.hub(None))
    assert open_checkpoint(folder).config == config
    assert open_checkpoint(folder).preprocess.native


def test_the_mark_of_untrained_weights_survives_without_its_config(tmp_path: Path, weights):
    facts = provenance(trained=False)
    folder = save_checkpoint(tmp_path / "m", weights, CONFIG, PREPROCESS, facts)
    assert not open_checkpoint(folder).trained
    (folder / "config.json").unlink()
    assert not open_checkpoint(folder / "model.safetensors", CONFIG).trained


def test_the_mark_in_the_provenance_alone_counts(saved: Path):
    edit_json(saved / "config.json", provenance={"trained": False})
    assert not open_checkpoint(saved).trained


# What our config.json may not say


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format_version": 2}, "upgrade aim-mlx"),
        ({"format_version": 0}, "format_version"),
        ({"format_version": "1"}, "format_version"),
        ({"format_version": True}, "format_version"),
        ({"format": "other"}, "'aim-mlx'"),
        ({"kind": "audio"}, "kind"),
        ({"kind": ["vision"]}, "kind"),
        ({"extra": 1}, "'extra'"),
        ({"preprocessing": None}, "'preprocessing'"),
        ({"encoder": 7}, "VisionConfig"),
        ({"encoder": {"embed_dim": 64}}, "VisionConfig"),
        ({"preprocessing": []}, "PreprocessConfig"),
        ({"provenance": []}, "provenance"),
    ],
)
def test_our_config_is_read_strictly(saved: Path, changes: dict[str, Any], words: str):
    edit_json(saved / "config.json", **changes)
    with pytest.raises(CheckpointError) as error:
        open_checkpoint(saved)
    assert words in str(error.value)


def test_our_config_must_agree_with_the_weights(saved: Path):
    values = json.loads((saved / "config.json").read_text())
    edit_json(saved / "config.json", encoder=values["encoder"] | {"num_blocks": 2})
    with pytest.raises(CheckpointError, match="unexpected tensor 'trunk.blocks.2.*config.json"):
        open_checkpoint(saved)


def test_another_weight_file_in_our_folder_is_not_taken_for_ours(saved: Path):
    (saved / "mlx_model.safetensors").write_text("something else")
    assert open_checkpoint(saved).config == CONFIG


LIT = LiTConfig(VisionConfig(64, 96, 1, 2, 14, 28), TextConfig(48, 64, 1, 3, 9, 5, 8), 16, 50.0)


@pytest.fixture
def saved_lit(tmp_path: Path) -> Path:
    return save_checkpoint(
        tmp_path / "lit", initial_weights(LIT, 0), LIT, PreprocessConfig.hub(28), provenance()
    )


def test_a_saved_lit_folder_opens_as_it_was(saved_lit: Path):
    checkpoint = open_checkpoint(saved_lit)
    assert (checkpoint.kind, checkpoint.config) == ("lit", LIT)
    same(load_weights(checkpoint), dict(initial_weights(LIT, 0)))


def test_a_random_lit_model_starts_at_the_published_temperature():
    weights = dict(initial_weights(LIT, 0))
    assert weights["log_logit_scale"].item() == pytest.approx(np.log(1 / 0.07))
    table = np.array(weights["text_encoder.preprocessor.text_embedding.weight"])
    assert 0.01 < table.std() < 0.03


@pytest.mark.parametrize("name", ["vision", "text", "projection_dim", "max_logit_scale"])
@pytest.mark.parametrize("value", [None, 0, [], {}, "x", {"embed_dim": 64}])
def test_a_lit_config_of_ours_is_read_strictly(saved_lit: Path, name: str, value: Any):
    values = json.loads((saved_lit / "config.json").read_text())["encoder"]
    edit_json(saved_lit / "config.json", encoder=values | {name: value})
    with pytest.raises(CheckpointError):
        open_checkpoint(saved_lit)


def test_kind_and_sizes_must_be_of_one_kind(saved: Path, saved_lit: Path):
    for folder, kind in ((saved, "lit"), (saved_lit, "vision")):
        edit_json(folder / "config.json", kind=kind)
        with pytest.raises(CheckpointError, match="Config"):
            open_checkpoint(folder)


# Weights that cannot be saved


def refused(folder: Path, weights: Any, error: type[Exception] = CheckpointError) -> str:
    with pytest.raises(error) as caught:
        save_checkpoint(folder, weights, CONFIG, PREPROCESS)
    assert not folder.exists()
    return str(caught.value)


@pytest.mark.parametrize("as_pairs", [False, True])
def test_weights_that_are_not_the_models_are_refused_and_leave_nothing(
    tmp_path: Path, weights, as_pairs: bool
):
    def given(values: dict[str, mx.array]) -> Any:
        return iter(values.items()) if as_pairs else values

    name = "trunk.post_trunk_norm.weight"
    missing = {k: v for k, v in weights.items() if k != name}
    assert "missing tensor" in refused(tmp_path / "a", given(missing))
    assert "unexpected" in refused(tmp_path / "b", given(weights | {"extra": mx.zeros(1)}))
    assert "wrong shape" in refused(tmp_path / "c", given(weights | {name: mx.zeros(65)}))
    nan = weights | {name: mx.full(64, float("nan"))}
    assert "not finite" in refused(tmp_path / "d", given(nan))


def test_a_cast_that_overflows_is_refused(tmp_path: Path, weights):
    large = weights | {"trunk.post_trunk_norm.weight": mx.full(64, 1e5)}
    with pytest.raises(CheckpointError, match="not finite as F16"):
        save_checkpoint(tmp_path / "m", large, CONFIG, PREPROCESS, dtype=mx.float16)


def test_a_tensor_that_comes_twice_is_refused(tmp_path: Path, weights):
    first = next(iter(weights.items()))
    assert "came twice" in refused(tmp_path / "m", iter([*weights.items(), first]))


def test_an_error_in_the_stream_of_weights_leaves_nothing(tmp_path: Path, weights):
    def stream() -> Iterator[tuple[str, mx.array]]:
        yield next(iter(weights.items()))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path / "m", stream(), CONFIG, PREPROCESS)
    assert not (tmp_path / "m").exists()


def test_the_writer_takes_each_tensor_once_and_as_stated(tmp_path: Path):
    specs = {"a": ("F32", (2,)), "b": ("BF16", (3,))}
    with open(tmp_path / "x", "wb") as file:
        writer = SafetensorsWriter(file, specs, {})
        with pytest.raises(ValueError, match="expected F32"):
            writer.write("a", np.zeros(3, np.float32))
        writer.write("a", np.zeros(2, np.float32))
        with pytest.raises(ValueError, match="twice"):
            writer.write("a", np.zeros(2, np.float32))
        with pytest.raises(ValueError, match="b was never written"):
            writer.finish()


# Folders that cannot be written


def test_an_existing_folder_is_refused_and_left_as_it_was(saved: Path, weights):
    before = {p.name: p.read_bytes() for p in saved.iterdir()}
    with pytest.raises(OutputError, match="not empty"):
        save_checkpoint(saved, weights, CONFIG, PREPROCESS)
    assert {p.name: p.read_bytes() for p in saved.iterdir()} == before


def test_our_own_folder_is_overwritten_when_asked(saved: Path, weights):
    save_checkpoint(
        saved, weights, CONFIG, PREPROCESS, provenance("second"), dtype=mx.float16, overwrite=True
    )
    checkpoint = open_checkpoint(saved)
    assert checkpoint.dtype == "float16" and checkpoint.provenance["source"] == "second"


@pytest.mark.parametrize("name", ["notes.txt", "config.json"])
def test_a_folder_of_something_else_is_never_overwritten(tmp_path: Path, weights, name: str):
    (tmp_path / name).write_text("{}")
    with pytest.raises(OutputError, match="something else"):
        save_checkpoint(tmp_path, weights, CONFIG, PREPROCESS, overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_a_failed_overwrite_keeps_what_was_there(saved: Path, weights):
    before = {p.name: p.read_bytes() for p in saved.iterdir()}
    wrong = weights | {"trunk.post_trunk_norm.weight": mx.full(64, float("inf"))}
    with pytest.raises(CheckpointError):
        save_checkpoint(saved, wrong, CONFIG, PREPROCESS, overwrite=True)
    assert {p.name: p.read_bytes() for p in saved.iterdir()} == before


def test_an_empty_folder_is_used_and_kept_after_a_failure(tmp_path: Path, weights):
    with pytest.raises(CheckpointError):
        save_checkpoint(tmp_path, iter([]), CONFIG, PREPROCESS)
    assert tmp_path.is_dir() and not list(tmp_path.iterdir())
    save_checkpoint(tmp_path, weights, CONFIG, PREPROCESS)
    assert open_checkpoint(tmp_path).config == CONFIG


def test_what_a_killed_run_left_is_cleaned_up(tmp_path: Path, weights):
    (tmp_path / ".model.safetensors.123.aim-mlx.tmp").write_bytes(b"half")
    save_checkpoint(tmp_path, weights, CONFIG, PREPROCESS)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_a_missing_parent_or_a_file_in_the_way_is_an_output_error(tmp_path: Path, weights):
    (tmp_path / "file").write_text("x")
    for folder in (tmp_path / "absent" / "m", tmp_path / "file", tmp_path / "file" / "m"):
        with pytest.raises(OutputError):
            save_checkpoint(folder, weights, CONFIG, PREPROCESS)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_is_an_output_error_and_leaves_nothing(tmp_path: Path, weights):
    with pytest.raises(OutputError, match="cannot write"), full_from(300_000):
        save_checkpoint(tmp_path / "m", weights, CONFIG, PREPROCESS)
    assert not (tmp_path / "m").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_a_read_only_parent_is_an_output_error(tmp_path: Path, weights):
    tmp_path.chmod(0o555)
    with pytest.raises(OutputError):
        save_checkpoint(tmp_path / "m", weights, CONFIG, PREPROCESS)


def test_a_failing_rename_of_the_config_leaves_nothing(tmp_path: Path, weights, monkeypatch):
    real = os.replace

    def fail(source: Any, target: Any) -> None:
        if Path(target).name == "config.json":
            raise OSError(5, "Input/output error")
        real(source, target)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OutputError, match="Input/output error"):
        save_checkpoint(tmp_path / "m", weights, CONFIG, PREPROCESS)
    assert not (tmp_path / "m").exists()


def test_config_json_is_renamed_last_so_that_a_killed_save_is_no_model(tmp_path: Path, monkeypatch):
    """Whatever the kill leaves, a folder with a config.json of ours is complete."""
    renamed = []
    real = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (renamed.append(Path(b).name), real(a, b)))
    tokenizer = {"vocab.json": b"{}", "merges.txt": b""}
    weights = initial_weights(LIT, 0)
    save_checkpoint(tmp_path / "m", weights, LIT, PREPROCESS, extra_files=tokenizer)
    assert sorted(renamed) == ["config.json", "merges.txt", "model.safetensors", "vocab.json"]
    assert renamed[-1] == "config.json"


def test_the_shapes_saved_are_those_the_config_expects(weights):
    assert {k: tuple(v.shape) for k, v in weights.items()} == expected_shapes(CONFIG)
