"""A program in C that loads libpython at run time, as PythonKit does, and uses the bridge."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import aim_mlx
from tests import small

SOURCE = Path(__file__).parent / "bridge" / "host.c"
# Besides the Python that runs the tests, others with the packages that the bridge needs.
PYTHONS = [sys.executable, *os.environ.get("AIM_MLX_HOST_PYTHONS", "").split(os.pathsep)]
# 10,000 by hand take a minute; these are enough to see some hundred bytes that each leaves behind.
CALLS = int(os.environ.get("AIM_MLX_HOST_CALLS", "300"))
ASK = """if True:
    import json, os, sys, sysconfig
    folder, name = map(sysconfig.get_config_var, ("LIBDIR", "INSTSONAME"))
    library = os.path.join(folder or "", name or "")
    print(json.dumps([library, sys.base_prefix, [path for path in sys.path if path]]))
"""


@pytest.fixture(scope="module")
def host(tmp_path_factory) -> Path:
    """The program, built."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs gcc, and /proc to see memory and threads")
    program = tmp_path_factory.mktemp("host") / "host"
    strict = ["-Wall", "-Wextra", "-Werror", "-O1"]
    subprocess.run([compiler, *strict, "-o", program, SOURCE, "-ldl", "-lpthread"], check=True)
    return program


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> Path:
    """A folder with a model and a photograph, as a file and as raw pixels."""
    folder = tmp_path_factory.mktemp("given")
    small.save(folder / "model")
    Image.fromarray(small.photo(3)).save(folder / "photo.png")
    (folder / "pixels").write_bytes(small.photo(3).tobytes())
    return folder


def run_host(host: Path, given: Path, python: str, end: str, report: Path) -> dict[str, str]:
    """What a run of the program with the libpython of an interpreter reports, line by line."""
    asked = subprocess.run([python, "-c", ASK], check=True, capture_output=True, text=True)
    library, prefix, paths = json.loads(asked.stdout)
    if ".so" not in library or not os.path.exists(library):
        pytest.skip(f"{python} has no shared libpython ({library})")
    height, width, _ = small.photo(3).shape
    command = [host, library, given / "model", given / "photo.png", given / "pixels"]
    command += [str(height), str(width), str(CALLS), end, report]
    environment = {
        "PYTHONHOME": prefix,
        "PYTHONPATH": os.pathsep.join([str(Path(aim_mlx.__file__).parent.parent), *paths]),
        "HOME": "/proc",  # where nobody, not even root, can write
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    done = subprocess.run(command, env=environment, capture_output=True, timeout=1200)
    lines = report.read_text().splitlines() if report.exists() else []
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b""), lines
    assert lines[-1] == "done"
    return dict(line.split(": ", 1) for line in lines[:-1])


@pytest.mark.parametrize("end", ["finalize", "leave"])
@pytest.mark.parametrize("python", [python for python in PYTHONS if python])
def test_an_app_in_c_embeds_and_survives_and_ends_in_silence(host, given, tmp_path, python, end):
    report = run_host(host, given, python, end, tmp_path / "report")
    print(f"Python {report['version']}: {CALLS} calls, kB held {report['resident kB']}")
    vector = np.array(report["vector"].split(), np.float32)
    # Nine digits are a float32 to the bit; another version of numpy may preprocess otherwise.
    expected = aim_mlx.load(given / "model").embed([given / "photo.png"])[0]
    assert abs(vector - expected).max() < 1e-6
    assert int(report["threads after"]) == int(report["threads before"])
    assert 0 < int(report["cancelled after"]) < 20000
    assert slope(report["resident kB"]) * 1024 < 200  # bytes a call; a vector of this model has 256
    assert re.match(r"3\.1[123]\.", report["version"])


def slope(kilobytes: str) -> float:
    """kB that a call leaves behind, by a line through the second half of the samples."""
    held = np.array(kilobytes.split(), float)
    half = held[len(held) // 2 :]
    return float(np.polyfit(np.arange(len(half)), half, 1)[0]) * len(held) / CALLS
