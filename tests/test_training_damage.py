"""Folders of trainings with a damaged file: an error of one line, or the result of a sound one."""

import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from aim_mlx.errors import AimError
from tests.training_crashes import results, train, write_data
from tests.training_damage import OUTSIDE, damages

_PART = 8  # every so many damages are tried; all of them take minutes


@pytest.fixture(scope="module", params=["probe", "lit"])
def runs(request, tmp_path_factory) -> tuple[str, Path]:
    """A kind of training, and a folder with its data, and with it on those and on other photos."""
    folder = tmp_path_factory.mktemp(request.param)
    train(request.param, write_data(folder / "data"), folder / "sound")
    fewer = write_data(folder / "fewer")
    for seed in (0, 1):
        next(fewer.rglob(f"{seed}.png")).unlink()
    train(request.param, fewer, folder / "other")
    return request.param, folder


@pytest.fixture
def a_minute():
    def late(*_: Any) -> None:
        raise TimeoutError("it hangs")

    before = signal.signal(signal.SIGALRM, late)
    yield lambda: signal.alarm(60)
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def test_a_training_with_a_damaged_file_goes_on_to_the_same_or_says_what_is_wrong(
    runs, tmp_path, a_minute
):
    kind, data, sound, other = runs[0], *(runs[1] / name for name in ("data", "sound", "other"))
    whole, outside = results(sound), tmp_path / "outside"
    outside.write_bytes(OUTSIDE)
    tried = 0
    files = sorted(path.relative_to(sound) for path in sound.rglob("*") if path.is_file())
    for number, file in enumerate(files):
        found = [path for path in other.rglob(file.name) if path.is_file()]
        for place in range(number % _PART, 30, _PART):
            folder = tmp_path / "training"
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(sound, folder)
            every = list(damages(folder / file, found[0], outside))
            if place >= len(every):
                break
            name, damage = every[place]
            damage()
            a_minute()
            tried += 1
            try:
                train(kind, data, folder)
            except AimError as error:
                assert "\n" not in str(error) and error.exit_code in (2, 4, 5), f"{file}, {name}"
            else:
                assert results(folder) == whole, f"{file}, {name}"
            assert outside.read_bytes() == OUTSIDE, f"{file}, {name}"
    assert tried > 20
