"""Downloads from the Hub: the real client against a Hub on this machine."""

import hashlib
import json
import os
import random
import resource
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants

from aim_mlx.errors import CheckpointError
from aim_mlx.registry import MODELS
from aim_mlx.weights import hub as hub_module
from aim_mlx.weights.checkpoint import open_checkpoint
from aim_mlx.weights.hub import cached, fetch, fetch_model, is_repo_id
from tests.commands import run, start
from tests.hub_server import Fault, serving, without_pauses

DATA = Path(__file__).parent / "data"
REPO = "owner/model"
TEN_MEGABYTES = 10 * 2**20  # the client writes to the disk in pieces of this size


def files_of(folder: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (DATA / folder).iterdir()}


def spoiled(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub with a small real checkpoint; the client of this process and of others use it."""
    with serving(monkeypatch, tmp_path / "home") as server:
        server.add(REPO, files_of("vision_absolute/ml_aim_mlx"))
        yield server


def refused(capsys, *words: str, code: int = 4, call: tuple = ("download", REPO)) -> None:
    """The command ends with the code and one line that has the words; nothing goes to stdout."""
    result, out, err = run(capsys, *call)
    assert result == code and out == "", err
    assert len(err.strip().splitlines()) == 1 and "Traceback" not in err, err
    assert all(word in err for word in words), err


def cache() -> Path:
    return Path(constants.HF_HUB_CACHE) / "models--owner--model"


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.startswith(".")}


def sharded(**weight_map: str) -> dict[str, bytes]:
    """A repo of shards with an index, as larger copies are published."""
    index = weight_map or {"a": "model-1.safetensors", "b": "model-2.safetensors"}
    return {
        "config.json": b"{}",
        "model.safetensors.index.json": json.dumps({"weight_map": index}).encode(),
        "model-1.safetensors": noise(3000, 1),
        "model-2.safetensors": noise(3000, 2),
    }


# What is fetched


def test_the_folder_of_a_download_is_a_checkpoint_that_opens(hub, capsys):
    code, out, err = run(capsys, "download", REPO)
    assert code == 0 and err == ""
    folder = Path(out.strip())
    assert folder.name == hub.repos[REPO].commit
    assert open_checkpoint(folder).layout == "ml-aim-mlx"


def test_json_gives_the_folder_the_commit_and_the_sizes_of_the_files(hub, capsys):
    code, out, _ = run(capsys, "download", REPO, "--json")
    facts = json.loads(out)
    assert code == 0 and facts["model"] == REPO
    assert facts["commit"] == hub.repos[REPO].commit == Path(facts["path"]).name
    assert facts["files"] == {name: len(data) for name, data in hub.repos[REPO].files.items()}


def test_only_needed_files_are_asked_for(hub):
    more = ["pytorch_model.bin", "modeling_aim.py", "README.md", "flax_model.msgpack"]
    tokenizer = ["tokenizer.json", "vocab.json", "merges.txt", "processor_config.json"]
    needed = files_of("vision_absolute/transformers") | {name: name.encode() for name in tokenizer}
    hub.add(REPO, needed | {name: name.encode() for name in more})
    assert names(fetch(REPO)) == set(needed)
    assert sorted(hub.paths("GET")) == sorted(needed)
    assert hub.paths("GET")[-1] == "model.safetensors"  # last: with it, all is there
    assert len(hub.log) == 1 + len(needed) + 1  # the list, the files, and where the weights are


def test_the_mlx_file_goes_before_one_file_and_that_before_shards(hub):
    files = sharded() | {"model.safetensors": b"one", "mlx_model.safetensors": b"mlx"}
    for expected in ("mlx_model.safetensors", "model.safetensors", "model-1.safetensors"):
        hub.add(REPO, files)
        folder = fetch(REPO)
        assert [n for n in sorted(names(folder)) if n.endswith(".safetensors")][0] == expected
        files.pop(expected)


def test_all_shards_of_an_index_come(hub):
    hub.add(REPO, sharded() | {"other.safetensors": b"not in the index"})
    folder = fetch(REPO)
    assert names(folder) == set(sharded())


def test_a_pinned_revision_is_fetched_though_main_has_moved(hub):
    repo = hub.repos[REPO]
    hub.repos["owner/moved"] = repo
    repo.branches = {"v1"}
    assert fetch("owner/moved", repo.commit).name == repo.commit
    assert fetch("owner/moved", "v1").name == repo.commit
    with pytest.raises(CheckpointError, match="no revision main"):
        fetch("owner/moved")


def test_a_registry_name_is_its_repo_at_its_pinned_revision(hub, monkeypatch):
    spec = MODELS["aimv2-large-patch14-224"]
    commit = hub.add(spec.repo, files_of("vision_absolute/ml_aim_mlx"))
    hub.repos[spec.repo].branches = {spec.revision}  # the true commit of other bytes
    with pytest.raises(CheckpointError, match="commit"):
        fetch_model(spec.name)
    pinned = replace(spec, revision=commit)
    monkeypatch.setattr("aim_mlx.registry.MODELS", {**MODELS, spec.name: pinned})
    assert fetch_model(spec.name).name == commit


def test_an_unknown_name_suggests_near_ones(hub, capsys):
    call = ("download", "aimv2-lage-patch14-224")
    refused(capsys, "did you mean", "aimv2-large-patch14-224", code=2, call=call)
    assert not hub.log


def test_a_model_without_published_weights_says_how_to_make_one(hub, capsys):
    call = ("download", "aimv2-base-patch14-224")
    refused(capsys, "no weights", "aim-mlx init", call=call)


def test_a_repo_id_has_one_owner_and_one_name():
    assert is_repo_id("apple/aimv2-large-patch14-224")
    for text in ("aimv2", "./model", "../model", "a/b/c", "/a/b", "a/..", "a--b/c", "a/b c", "a/"):
        assert not is_repo_id(text), text


def test_the_token_of_the_user_goes_to_the_hub_and_to_no_other_host(hub, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", False)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    fetch(REPO)
    assert len(hub.with_token) == len(hub.log) - 1
    assert [line for line in hub.log if line not in hub.with_token] == [
        f"GET /cdn/{REPO}/mlx_model.safetensors"
    ]


# What is already here


def test_a_pinned_commit_that_is_here_is_used_without_a_request(hub):
    commit = hub.repos[REPO].commit
    folder = fetch(REPO, commit)
    hub.log.clear()
    assert fetch(REPO, commit) == folder and not hub.log


def test_a_branch_that_has_not_moved_costs_one_request_for_its_commit(hub):
    folder = fetch(REPO)
    hub.log.clear()
    assert fetch(REPO) == folder
    assert hub.log == [f"GET /api/models/{REPO}/revision/main"]


def test_a_branch_that_moved_is_fetched_again(hub):
    first = fetch(REPO)
    second = hub.add(REPO, files_of("vision_absolute/timm"))
    assert fetch(REPO).name == second != first.name
    assert cached(REPO) == fetch(REPO, offline=True) == first.with_name(second)


@pytest.mark.parametrize("how", ["argument", "HF_HUB_OFFLINE"])
def test_offline_uses_what_is_here_and_asks_nothing(hub, monkeypatch, how):
    folder = fetch(REPO)
    hub.log.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", how == "HF_HUB_OFFLINE")
    assert fetch(REPO, offline=how == "argument") == folder and not hub.log


def test_offline_and_not_here_says_how_to_get_it(hub, capsys):
    call = ("download", REPO, "--offline")
    refused(capsys, REPO, "not complete on this disk", "aim-mlx download", call=call)
    assert not hub.log and cached(REPO) is None


def test_what_is_here_serves_while_the_hub_is_down(hub):
    folder = fetch(REPO)
    hub.faults = [Fault("/api/", status=503)]
    assert fetch(REPO) == folder
    hub.close()
    assert fetch(REPO) == folder
    assert len([line for line in hub.log if "/api/" in line]) == 2  # the last one reached nobody


def test_a_configuration_without_weights_is_not_a_cached_model(hub):
    huggingface_hub.hf_hub_download(REPO, "config.json")
    assert cached(REPO) is None
    huggingface_hub.hf_hub_download(REPO, "mlx_model.safetensors")
    assert cached(REPO) is not None


def test_shards_are_cached_only_together(hub):
    hub.add(REPO, sharded())
    for name in list(sharded())[:3]:
        huggingface_hub.hf_hub_download(REPO, name)
    assert cached(REPO) is None
    huggingface_hub.hf_hub_download(REPO, "model-2.safetensors")
    assert cached(REPO) is not None


def test_a_file_deleted_from_the_cache_is_fetched_again(hub):
    folder = fetch(REPO)
    (folder / "preprocessor_config.json").unlink()
    hub.log.clear()
    assert fetch(REPO, folder.name) == folder
    assert hub.paths("GET") == [] and (folder / "preprocessor_config.json").exists()


def test_files_of_another_program_are_checked_once_before_they_are_used(hub):
    huggingface_hub.hf_hub_download(REPO, "mlx_model.safetensors")
    blob = next((cache() / "blobs").iterdir())
    right = blob.read_bytes()
    blob.write_bytes(spoiled(right))
    folder = fetch(REPO)
    assert (folder / "mlx_model.safetensors").read_bytes() == right


# What goes wrong


REFUSALS = [
    (Fault("/api/", 401, "RepoNotFound"), ["no model repo owner/model", "hf auth login"]),
    (Fault("/api/", 404, "RepoNotFound"), ["no model repo owner/model", "correct the name"]),
    (Fault("/api/", 401), ["access token", "hf auth login"]),
    (Fault("/api/", 403, "GatedRepo"), ["gated", "accept its licence", "hf auth login"]),
    (Fault("GET /owner", 403, "GatedRepo"), ["gated", "/owner/model", "hf auth login"]),
    (Fault("/api/", 403), ["forbidden", "licence"]),
    (Fault("/api/", 500), ["status 500", "run again later"]),
    (Fault("/api/", 429), ["status 429", "run again later"]),
    (Fault("/cdn/", 500), ["status 500", "run again later"]),
    (Fault("/cdn/", 404), ["status 404", "/owner/model"]),
    (Fault("/api/", 418), ["status 418"]),
    (Fault("/api/", cut=20), ["cannot be reached", "run again"]),
    (Fault("/api/", change=lambda data: b"[" + b"1" * (len(data) - 2) + b"]"), ["the Hub's list"]),
    (Fault("/api/", change=lambda data: b"<html>" + data[6:]), ["the Hub's list"]),
    (Fault("/cdn/", change=spoiled), ["digest", "run again"]),
    (Fault("GET /owner", change=spoiled), ["config.json", "digest"]),
]


@pytest.mark.parametrize(
    ("fault", "words"), REFUSALS, ids=lambda v: v[0][:20] if isinstance(v, list) else v.matches
)
def test_a_refusal_of_the_hub_is_one_line_that_says_what_to_do(
    hub, capsys, monkeypatch, fault, words
):
    without_pauses(monkeypatch)
    hub.faults = [Fault(**vars(fault))]
    refused(capsys, *words)
    assert cached(REPO) is None
    hub.faults = []
    assert names(fetch(REPO)) == set(hub.repos[REPO].files)  # and nothing bad stayed


def test_an_unknown_revision_is_named(hub, capsys):
    refused(capsys, "no revision v9", call=("download", REPO, "--revision", "v9"))


@pytest.mark.parametrize("revision", ["../../x", "/etc", "a b", "-x", "v1\n"])
def test_a_revision_that_is_a_path_is_refused(hub, revision):
    with pytest.raises(CheckpointError, match="revision"):
        fetch(REPO, revision)
    assert not hub.log


@pytest.mark.parametrize("repo", ["../x", "a/../b", "/etc/x", "model", "a/b/c"])
def test_a_repo_that_is_a_path_is_refused(hub, repo):
    for function in (fetch, cached):
        with pytest.raises(CheckpointError, match="owner/name"):
            function(repo)
    assert not hub.log


def test_a_hub_that_is_not_there_is_one_line(hub, capsys):
    hub.close()
    refused(capsys, "cannot be reached", "check the connection")


def test_a_repo_without_safetensors_names_its_pickle(hub, capsys):
    hub.add(REPO, {"config.json": b"{}", "pytorch_model.bin": b"x"})
    refused(capsys, "no weights to use", "mlx_model.safetensors", "pytorch_model.bin", "run code")
    assert hub.paths("GET") == []


def test_an_absurdly_large_configuration_is_not_fetched(hub, capsys):
    hub.add(REPO, {"mlx_model.safetensors": b"x"})
    hub.listing_only = {"config.json": 10**11}
    refused(capsys, "config.json", "100000000000 bytes", "at most")
    assert hub.paths("GET") == []


BAD_SHARDS = ["../x.safetensors", "/tmp/x.safetensors", "a/b.safetensors", "a\\b.safetensors",
              "C:x.safetensors", "model.bin", ".x.safetensors", "", 3, None]  # fmt: skip


@pytest.mark.parametrize("shard", BAD_SHARDS, ids=repr)
def test_an_index_cannot_name_a_file_elsewhere(hub, shard):
    hub.add(REPO, sharded(a="model-1.safetensors", b=shard))
    with pytest.raises(CheckpointError, match="puts tensor"):
        fetch(REPO)
    assert not any("model-1" in line for line in hub.log)  # checked before any is asked for


def test_a_shard_that_the_repo_lacks_is_named(hub):
    hub.add(REPO, sharded(a="model-1.safetensors", b="model-9.safetensors"))
    with pytest.raises(CheckpointError, match="lacks the shard 'model-9.safetensors'"):
        fetch(REPO)


def test_names_that_lead_out_of_the_folder_are_never_asked_for(hub, tmp_path):
    hub.listing_only = {"../config.json": 2, "/tmp/model.safetensors": 2, "a/../../x": 2}
    folder = fetch(REPO)
    assert names(folder) == set(hub.repos[REPO].files)
    assert not any(".." in line or "/tmp" in line for line in hub.log)
    assert names(tmp_path) == {"home"}


def test_a_full_disk_is_a_failed_output_that_names_the_place(hub, tmp_path):
    hub.add(REPO, {"config.json": b"{}", "model.safetensors": noise(2**20)})
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2**19, 2**19))  # noqa: E731
    process = start("download", REPO, preexec_fn=limit)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 5 and out == "" and len(err.splitlines()) == 1, err
    assert str(tmp_path / "home") in err and "make room" in err
    assert cached(REPO) is None and not list(cache().rglob("*.incomplete"))


def test_a_cache_that_cannot_be_written_is_a_failed_output(hub, tmp_path, capsys):
    (tmp_path / "home").write_text("a file where the folder should be")
    refused(capsys, "cannot be stored", "HF_HOME", code=5)


def test_a_damaged_download_is_removed(hub):
    hub.faults = [Fault("/cdn/", change=spoiled)]
    with pytest.raises(CheckpointError, match="came with digest"):
        fetch(REPO)
    blobs = {path.name for path in (cache() / "blobs").iterdir()}
    assert hashlib.sha256(hub.repos[REPO].files["mlx_model.safetensors"]).hexdigest() not in blobs


# What is interrupted


def test_a_connection_cut_in_the_middle_is_taken_up_where_it_broke(hub):
    data = noise(TEN_MEGABYTES + 10**6)
    hub.add(REPO, {"model.safetensors": data})
    hub.faults = [Fault("GET /cdn/", cut=TEN_MEGABYTES + 1000, times=1)]
    folder = fetch(REPO)
    assert (folder / "model.safetensors").read_bytes() == data
    assert len([line for line in hub.log if line.startswith("GET /cdn/")]) == 2


def test_an_outage_in_the_middle_is_waited_for(hub, monkeypatch):
    pauses, data = without_pauses(monkeypatch), noise(300_000)
    hub.add(REPO, {"model.safetensors": data})
    hub.faults = [Fault("GET /cdn/", cut=100_000, times=1)]
    hub.faults += [Fault("GET /cdn/", answer=lambda handler: None, times=3)]  # hangs up at once
    assert (fetch(REPO) / "model.safetensors").read_bytes() == data
    assert pauses == [1, 1, 1, 1]


def test_a_connection_that_is_always_cut_gives_up(hub, monkeypatch, capsys):
    pauses = without_pauses(monkeypatch)
    hub.faults = [Fault("GET /cdn/", cut=1000)]
    refused(capsys, "cannot be reached", "run again")
    assert pauses and cached(REPO) is None


@pytest.fixture
def slow(hub) -> bytes:
    """The weights of a repo whose download takes about a second."""
    data = noise(3 * TEN_MEGABYTES)
    hub.add(REPO, {"config.json": b"{}", "model.safetensors": data})
    hub.faults = [Fault("GET /cdn/", pause=0.01)]
    return data


def wait_for_half_a_file(seconds: float = 30) -> None:
    """Returns while the weights are on their way."""
    for _ in range(int(seconds / 0.02)):
        for path in cache().glob("blobs/*.incomplete"):
            with suppress(FileNotFoundError):  # a small file, which has come already
                if path.stat().st_size >= TEN_MEGABYTES:
                    return
        time.sleep(0.02)
    raise AssertionError(f"no download in {cache()}")


def test_a_download_killed_at_any_time_ends_right_when_repeated(hub, slow):
    for seed in range(4):
        process = start("download", REPO)
        if seed == 0:
            wait_for_half_a_file()
        else:
            time.sleep(random.Random(seed).uniform(0.3, 1.6))
        process.kill()
        process.communicate()
        found = cached(REPO)  # either nothing, or, where it had ended before, all of it
        assert found is None or (found / "model.safetensors").read_bytes() == slow
    hub.faults = []
    folder = fetch(REPO)
    assert (folder / "model.safetensors").read_bytes() == slow
    assert not list(cache().rglob("*.incomplete"))  # what the killed ones left is cleaned up


def test_two_downloads_at_once_give_the_same_right_file(hub, slow):
    both = [start("download", REPO) for _ in range(2)]
    results = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [0, 0], results
    assert results[0][0] == results[1][0]
    assert (Path(results[0][0].strip()) / "model.safetensors").read_bytes() == slow
    assert len([line for line in hub.log if line.startswith("GET /cdn/")]) == 1


def test_ctrl_c_ends_with_130_and_leaves_no_half_file(hub, slow):
    process = start("download", REPO)
    wait_for_half_a_file()
    process.send_signal(2)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and out == "" and "run again" in err, err
    assert len(err.splitlines()) == 1 and not list(cache().rglob("*.incomplete"))


# What is shown


def test_the_library_shows_nothing(hub, capfd):
    fetch(REPO)
    assert capfd.readouterr() == ("", "")


def test_progress_is_shown_with_the_class_that_is_given(hub, capfd):
    class Bars(huggingface_hub.utils.tqdm):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **{**options, "disable": False})

    fetch(REPO, progress=Bars)
    assert "100%" in capfd.readouterr().err


def test_a_command_sends_no_telemetry_and_prints_only_the_folder(hub, monkeypatch):
    monkeypatch.delenv("HF_HUB_DISABLE_TELEMETRY")
    monkeypatch.delenv("HF_HUB_VERBOSITY")
    hub.faults = [Fault("GET /cdn/", cut=1000, times=1)]  # of which the client would tell
    process = start("download", REPO, env=dict(os.environ))
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and err == "" and Path(out.strip()).is_dir()
    assert all(REPO in line for line in hub.log)


def test_importing_the_module_does_not_load_the_client():
    code = f"import sys, {hub_module.__name__}; sys.exit('huggingface_hub' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
