"""What the bridge leaves alone in the process of its host, each in a process of its own."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import aim_mlx
from aim_mlx.config import VisionConfig
from tests import small

ROOT = Path(__file__).parent.parent
# 57 million parameters: enough for the rest of the process not to matter, and written in a second.
LARGE = VisionConfig(768, 2048, 8, 6, 14, 56)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("process")
    small.save(folder / "vision")
    small.save_lit(folder / "lit")
    Image.fromarray(small.photo(0)).save(folder / "photo.png")
    (folder / "pixels").write_bytes(small.photo(0).tobytes())
    return folder


def run(program: str, folder: Path, **options) -> subprocess.CompletedProcess[str]:
    """A program with the bridge's module, in a folder with the models and a photograph."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HOME": "/proc", "HF_HUB_OFFLINE": "0"}
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        **options,
    )


SILENT = """if True:
    import signal, socket, sys, threading
    from aim_mlx.bridge import Embedder
    from tests.bad_images import BAD

    def no_network(*_, **__):
        raise AssertionError("a connection was made")

    signals = [signal.getsignal(number) for number in signal.valid_signals()]
    socket.socket.connect = no_network
    out, sys.stdout, sys.stdin = sys.stdout, None, None
    answers = []

    def work():
        lit = Embedder("lit")
        answers.append(lit.prepare()["ok"])
        answers.append(lit.embed_files("photo.png")["ok"])
        answers.append(lit.embed_text("a cat " * 99)["ok"])
        answers.append(lit.classify("photo.png", ["a", "b"])["ok"])
        answers.append(lit.embed_bytes([bad.content for bad in BAD.values()])["ok"])
        answers.append(Embedder("aimv2-large-patch14-224").prepare()["kind"])
        answers.append(lit.release()["ok"])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert answers == [True, True, True, True, False, "model", True], answers
    assert signals == [signal.getsignal(number) for number in signal.valid_signals()]
    assert threading.active_count() == 2  # with the owner, which waits
    assert "mlx.data" not in sys.modules  # whose threads do not always end
    assert sys.stdout is None
    out.write("done")
"""


def test_a_thread_of_a_host_without_stdout_network_or_home_sees_nothing_printed(folder):
    done = run(SILENT, folder)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done", "")


RELEASED = """if True:
    import resource
    from aim_mlx.bridge import Embedder

    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize()

    Embedder("vision").prepare()  # all libraries are loaded
    embedder = Embedder("large")
    for cycle in range(3):
        before = resident()
        assert embedder.embed_files("photo.png")["ok"]
        loaded = resident()
        assert embedder.release()["ok"]
        print(before, loaded, resident())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the memory held in /proc")
def test_release_gives_nine_tenths_of_the_weights_back_each_time(folder):
    small.save(folder / "large", LARGE)
    weights = (folder / "large" / "model.safetensors").stat().st_size
    done = run(RELEASED, folder)
    assert (done.returncode, done.stderr) == (0, "")
    first = int(done.stdout.split()[0])
    for line in done.stdout.splitlines():
        before, loaded, after = map(int, line.split())
        assert loaded - before > 0.8 * weights
        assert loaded - after > 0.9 * weights
        assert after - first < 0.1 * weights
    (folder / "large" / "model.safetensors").unlink()


FORKED = """if True:
    import os
    from aim_mlx.bridge import Embedder
    embedder = Embedder("vision")
    assert embedder.prepare()["ok"]
    child = os.fork()
    if child == 0:
        answer = embedder.embed_files("photo.png")
        os._exit(7 if answer["kind"] == "backend" and "forked" in answer["error"] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert embedder.embed_files("photo.png")["ok"]
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_gets_an_error_and_does_not_wait(folder):
    done = run(FORKED, folder)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


AT_WORK = """if True:
    import threading, time
    from aim_mlx.bridge import Embedder
    embedder = Embedder("vision")
    data = open("photo.png", "rb").read()
    work = lambda: embedder.embed_bytes([data] * 100_000)
    threading.Thread(target=work, daemon=True).start()
    while not embedder.progress()["done"]:
        time.sleep(0.001)
"""


def test_a_program_that_ends_in_the_middle_of_a_call_ends_well(folder):
    # Eight at once, so that threads wait for a core at the moment when it matters.
    with ThreadPoolExecutor(8) as pool:
        every = list(pool.map(lambda _: run(AT_WORK, folder), range(8)))
    ends = {(done.returncode, done.stdout, done.stderr) for done in every}
    assert ends == {(0, "", "")}


BLOCKED = """if True:
    import sys
    import importlib.abc

    class Blocked(importlib.abc.MetaPathFinder):
        names = {"pyarrow", "typer", "rich", "huggingface_hub", "click", "tokenizers"}

        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] in self.names or name.startswith("mlx.data"):
                raise ImportError(f"{name} is not part of the app")

    sys.meta_path.insert(0, Blocked())
    import numpy as np
    import aim_mlx
    from aim_mlx.bridge import Embedder

    photo = np.frombuffer(open("pixels", "rb").read(), np.uint8).reshape(60, 80, 3)
    data = open("photo.png", "rb").read()
    for model in ("vision", "lit"):
        embedder, encoder = Embedder(model), aim_mlx.load(model)
        answers = [embedder.embed_files("photo.png"), embedder.embed_bytes(data)]
        answers.append(embedder.embed_rgb(photo, 60, 80))
        for answer in answers:
            assert answer["ok"], answer
        vectors = encoder.embed(["photo.png", data, photo])
        assert np.allclose(vectors, np.stack([each["values"] for each in answers]), atol=1e-5)
        np.save(f"{model}.npy", vectors)
    words = embedder.embed_text("a cat")
    assert words["kind"] == "model" and "pip install tokenizers" in words["error"], words
    hub = Embedder("aimv2-large-patch14-224", offline=False).prepare()
    assert "huggingface_hub is not part of the app" in hub["error"], hub
"""


def test_encoder_and_bridge_need_no_package_that_an_app_leaves_out(folder):
    done = run(BLOCKED, folder)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    for model in ("vision", "lit"):
        expected = aim_mlx.load(folder / model).embed([folder / "photo.png"])
        # Batches of other sizes round otherwise, in the last bits of float32.
        assert abs(np.load(folder / f"{model}.npy") - expected).max() < 1e-5
