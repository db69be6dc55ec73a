"""`aim-mlx verify`: exit code, one line a fault on stderr, data on stdout."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aim_mlx.cli import main as cli
from aim_mlx.encoder.encoder import Encoder
from aim_mlx.store import journal, manifest
from aim_mlx.store.reader import EmbeddingStore
from aim_mlx.store.rows import Row
from aim_mlx.store.writer import writing
from tests import small


@pytest.fixture
def work(tmp_path, monkeypatch, capsys) -> Path:
    """The working folder, with photos, a model, and a store of them with one skip."""
    (tmp_path / "photos").mkdir()
    for seed in range(5):
        Image.fromarray(small.photo(seed)).save(tmp_path / "photos" / f"{seed}.png")
    (tmp_path / "photos" / "broken.jpg").write_bytes(b"no image")
    small.save(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    assert cli._run(["embed", "photos", "-o", "store", "--model", "model"]) == 3
    capsys.readouterr()
    return tmp_path


def run(capsys, *arguments) -> tuple[int, str, list[str]]:
    code = cli._run(["verify", *map(str, arguments)])
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return code, captured.out, captured.err.splitlines()


def test_a_sound_store_ends_with_zero_and_its_account(capsys, work):
    code, out, err = run(capsys, "store")
    assert code == 0 and out == ""
    assert err == [
        "sound and complete: 5 rows in 1 shard; 6 files listed, 5 embedded, 1 skipped, 0 ignored"
    ]


def test_a_damaged_shard_is_one_line_and_embedding_again_repairs_it(capsys, work):
    path = work / "store" / "rows-000000.parquet"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    code, _, err = run(capsys, "store", "--sample", "2")
    assert code == 5 and "rows-000000.parquet" in err[0] and "embed again" in err[0]
    assert "repair the store first" in err[1] and err[2].startswith("1 fault: ")
    assert cli._run(["embed", "photos", "-o", "store", "--model", "model"]) == 3
    capsys.readouterr()
    assert run(capsys, "store")[0] == 0


def test_a_sample_embedded_again_gives_the_same_vectors(capsys, work):
    code, out, err = run(capsys, "store", "--sample", "3", "--seed", "2", "--json")
    *rows, summary = map(json.loads, out.splitlines())
    assert code == 0 and summary["event"] == "summary" and summary["recomputed"] == {"same": 3}
    assert len({row["path"] for row in rows}) == 3
    assert all(row["outcome"] == "same" and row["cosine"] > 1 - 1e-6 for row in rows)
    assert "3 of 3 photos (seed 2) embedded again, 3 gave the same vector" in err[0]


def sampled(capsys, seed: int) -> set[str]:
    code, out, _ = run(capsys, "store", "--sample", "2", "--seed", str(seed), "--json")
    assert code == 0
    return {row["path"] for row in map(json.loads, out.splitlines()) if row["event"] == "row"}


def test_the_seed_decides_which_photos_are_embedded_again(capsys, work):
    assert sampled(capsys, 1) == sampled(capsys, 1)
    assert len({frozenset(sampled(capsys, seed)) for seed in range(3)}) > 1


@pytest.mark.parametrize(("off", "outcome"), [(0.5e-4, "same"), (2e-4, "differs")])
def test_a_vector_may_be_off_by_the_rounding_of_its_dtype_and_no_more(
    capsys, work, off, outcome, monkeypatch
):
    """float32: a cosine of 1 - 1e-4; more is another photo, or other weights."""
    turned = Encoder.embed_stream

    def off_by(self, *arguments, **more):
        for row in turned(self, *arguments, **more):
            row.output = off_from(row.vector, off)
            yield row

    monkeypatch.setattr(Encoder, "embed_stream", off_by)
    code, out, _ = run(capsys, "store", "--sample", "3", "--json")
    rows = [row for row in map(json.loads, out.splitlines()) if row["event"] == "row"]
    assert [row["outcome"] for row in rows] == [outcome] * 3
    assert code == (0 if outcome == "same" else 5)
    # The encoder's own rounding is some 1e-7.
    assert all(abs(row["cosine"] - (1 - off)) < 1e-5 for row in rows)


def off_from(vector: np.ndarray, off: float) -> np.ndarray:
    """A vector of length 1 whose cosine with `vector`, of length 1, is 1 - off."""
    across = np.roll(vector, 1) - vector * (np.roll(vector, 1) @ vector)
    across /= np.linalg.norm(across)
    cosine = 1 - off
    return (cosine * vector + np.sqrt(1 - cosine**2) * across).astype(np.float32)


def test_photos_that_changed_or_vanished_are_reported_and_no_fault(capsys, work):
    (work / "photos" / "1.png").unlink()
    Image.fromarray(small.photo(99)).save(work / "photos" / "3.png")
    code, _, err = run(capsys, "store", "--sample", "5")
    assert code == 0
    assert any("photos/1.png was not compared: vanished" in line for line in err)
    assert any("photos/3.png was not compared: changed" in line for line in err)
    assert any("3 of 5 photos" in line for line in err)


def test_a_vector_of_another_photo_is_a_fault(capsys, work):
    store = EmbeddingStore("store")
    vectors = store.vectors[[1, 0, 2, 3, 4]]  # two that changed places
    rows = store.table().to_pylist()
    with writing(store.folder, overwrite=True) as writer:
        writer.begin(store.manifest)
        writer.start_run({"folder": str(work), "listed": 5, "ignored": 0}, store.paths, [])
        for facts, vector in zip(rows, vectors, strict=True):
            writer.add(Row(**{name: facts[name] for name in facts if name != "raw_path"}), vector)
        writer.end_block()
        writer.commit()
        writer.finish({"listed": 5, "embedded": 5, "skipped": 0, "ignored": 0}, [])
    assert run(capsys, "store")[0] == 0
    code, _, err = run(capsys, "store", "--sample", "5")
    faults = [line for line in err if line.startswith("fault: ")]
    assert code == 5 and len(faults) == 2
    assert "photos/0.png" in faults[0] and "photos/1.png" in faults[1]


@pytest.mark.parametrize("other", [None, replace(small.SMALL, num_blocks=2)])
def test_a_model_that_is_gone_or_is_another_ends_with_four(capsys, work, other):
    shutil.rmtree(work / "model")
    if other is not None:
        small.save(work / "model", other)
    code, _, err = run(capsys, "store", "--sample", "1", "--offline")
    assert code == 4 and len(err) == 1 and "embed again" in err[0]


def test_a_store_whose_run_was_stopped_is_not_called_complete(capsys, work):
    journal.Journal(work / "store").append()  # as the next run does when it starts
    code, _, err = run(capsys, "store")
    assert code == 1 and err[0].startswith("sound, but the last run was not finished")


def spoil(folder: Path, how: str) -> None:
    if how == "newer":
        facts = json.loads((folder / manifest.NAME).read_bytes())
        (folder / manifest.NAME).write_text(json.dumps({**facts, "schema": 99}))
    elif how == "empty":
        shutil.rmtree(folder)
        folder.mkdir()
    else:
        (folder / how).write_text('{"cut\n')


@pytest.mark.parametrize("how", ["newer", "empty", manifest.NAME, journal.NAME])
def test_what_is_no_store_ends_with_five_and_one_line(capsys, work, how):
    spoil(work / "store", how)
    code, out, err = run(capsys, "store")
    assert code == 5 and out == "" and len(err) == 1


@pytest.mark.parametrize("arguments", [["nowhere"], ["photos/0.png"], ["store", "--sample", "-1"]])
def test_a_wrong_argument_ends_with_two_and_one_line(capsys, work, arguments):
    code, out, err = run(capsys, *arguments)
    assert code == 2 and out == "" and len(err) == 1
