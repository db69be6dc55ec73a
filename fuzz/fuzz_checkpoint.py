"""Coverage-guided fuzzing of checkpoints with atheris: README.md says how to run it.

The first bytes choose a sound checkpoint and how its files are damaged; the rest may become the
content of a file, so that the fuzzer can also write headers and JSON of its own.
"""

# pyright: reportAttributeAccessIssue=false, reportMissingModuleSource=false
# (atheris is not among the packages that the checks of types see)

import os
import sys
import tempfile
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
with atheris.instrument_imports(include=["aim_mlx"]):
    import aim_mlx.weights.checkpoint  # noqa: F401
    import aim_mlx.weights.preprocess_json  # noqa: F401

from tests.test_weights_fuzz import CASES, outcome  # noqa: E402
from tests.weights_files import crafted  # noqa: E402
from tests.weights_mutations import MUTATIONS, Files, checkpoint, mutate, write  # noqa: E402

SEEDS = [checkpoint(*seed) for seed in CASES if seed[0] != "lit"]  # that one is too large
NAMES = sorted(MUTATIONS)


def damaged(data: bytes) -> Files:
    """The files that these bytes of the fuzzer stand for."""
    provider = atheris.FuzzedDataProvider(data)
    files = SEEDS[provider.ConsumeIntInRange(0, len(SEEDS) - 1)]
    count = provider.ConsumeIntInRange(0, 3)
    chosen = [
        (NAMES[provider.ConsumeIntInRange(0, len(NAMES) - 1)], provider.ConsumeInt(4))
        for _ in range(count)
    ]
    files = mutate(files, chosen)
    own = provider.ConsumeIntInRange(0, 3)
    rest = provider.ConsumeBytes(provider.remaining_bytes())
    names = sorted(files)
    if names and own and rest:
        name = names[rest[0] % len(names)]
        text = rest[1:]
        files[name] = crafted(text) if own == 1 and name.endswith(".safetensors") else text
    return files


def one(data: bytes) -> None:
    outcome(write(FOLDER, damaged(data)))


if __name__ == "__main__":
    memory = "/dev/shm"
    with tempfile.TemporaryDirectory(dir=memory if os.path.isdir(memory) else None) as folder:
        FOLDER = Path(folder) / "model"
        atheris.Setup(sys.argv, one)
        atheris.Fuzz()
