"""The measurements, each run in a process of its own: `python -m benchmarks.workers NAME JSON`.

Every function takes and returns JSON values; the last line on stdout is the result.
"""

import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.loading import load_ours, load_theirs
from benchmarks.material import images_in_memory, make_checkpoint, make_photos

_PACKAGES = ("aim-mlx", "mlx", "mlx-data", "numpy", "pillow", "torch", "transformers")


def machine() -> dict[str, Any]:
    """Processor, cores, device and versions; nothing that tells whose machine it is."""
    import platform

    from aim_mlx.backend import BLAS, device_name, on_gpu

    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {package: version(package) for package in _PACKAGES},
        "device": device_name(),
        "on_gpu": on_gpu(),
        "blas": {"state": BLAS.state, "kernels": BLAS.core, "threads": BLAS.threads},
        "load_average": round(os.getloadavg()[0], 2),
    }


def encode_ours(
    model: str, count: int, side: int, batch: int | None, dtype: str = "float32"
) -> dict[str, Any]:
    """Images/s of Encoder.embed on images in memory."""
    encoder = _encoder(model, dtype)
    images = images_in_memory(count, side)
    encoder.embed(images[: batch or 4], batch_size=batch)  # streams, threads and kernels
    started = time.perf_counter()
    vectors = encoder.embed(images, batch_size=batch)
    return _rate(count, time.perf_counter() - started) | {"checksum": _checksum(vectors)}


def encode_theirs(
    model: str, count: int, side: int, batch: int, dtype: str = "float32"
) -> dict[str, Any]:
    """Images/s of transformers' encoder, mean-pooled and normalised, on pixels already prepared."""
    import torch
    from transformers import Aimv2VisionModel

    from aim_mlx.config import PreprocessConfig
    from aim_mlx.images import preprocess

    device = _torch_device()
    network: Any = Aimv2VisionModel.from_pretrained(model, dtype=getattr(torch, dtype))
    network = network.eval().to(device)
    images = [preprocess(i, PreprocessConfig.hub(side)) for i in images_in_memory(count, side)]
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()

    def run(part):
        tokens = network(pixel_values=part.to(device, network.dtype)).last_hidden_state
        return torch.nn.functional.normalize(tokens.float().mean(1), dim=-1).cpu()

    with torch.inference_mode():
        run(pixels[:batch])
        started = time.perf_counter()
        vectors = torch.cat([run(pixels[i : i + batch]) for i in range(0, count, batch)])
    seconds = time.perf_counter() - started
    return _rate(count, seconds) | {"checksum": _checksum(vectors.numpy())}


def embed_folder(model: str, folder: str, side: int) -> dict[str, Any]:
    """Images/s of embed_files on a folder, from listing it to the finished file."""
    from aim_mlx.embedding.job import embed_files
    from aim_mlx.embedding.selection import Job, Selection
    from aim_mlx.encoder.encoder import EmbedOptions

    encoder = _encoder(model)
    encoder.embed(images_in_memory(4, side))
    with tempfile.TemporaryDirectory() as output:
        started = time.perf_counter()
        target = Path(output) / "out.npz"
        job = Job(Selection((folder,)), target, EmbedOptions())
        summary = embed_files(job, lambda: encoder, Silent())
        seconds = time.perf_counter() - started
    check_computed(summary.computed, folder)
    return _rate(summary.computed, seconds)


def decode_folder(folder: str, side: int, count: int) -> dict[str, Any]:
    """Core-seconds an image takes to be read, decoded, resized and normalised."""
    from aim_mlx.config import PreprocessConfig
    from aim_mlx.images import decode, preprocess

    paths, config = sorted(Path(folder).iterdir())[:count], PreprocessConfig.hub(side)
    started = time.process_time()
    shapes = {preprocess(decode(path), config).shape for path in paths}
    if shapes != {(side, side, 3)}:
        raise SystemExit(f"pixels of shapes {shapes}")
    return {"core_seconds_an_image": (time.process_time() - started) / len(paths)}


def peak_memory(model: str, folder: str) -> dict[str, Any]:
    """The largest resident size of a process that loads the model and embeds a folder."""
    from aim_mlx.backend import mx
    from aim_mlx.embedding.job import embed_files
    from aim_mlx.embedding.selection import Job, Selection
    from aim_mlx.encoder.encoder import EmbedOptions

    with tempfile.TemporaryDirectory() as output:
        target = Path(output) / "out.npz"
        job = Job(Selection((folder,)), target, EmbedOptions())
        summary = embed_files(job, lambda: _encoder(model), Silent())
    check_computed(summary.computed, folder)
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {"count": summary.computed, "peak_bytes": peak, "mlx_peak_bytes": mx.get_peak_memory()}


class Silent:
    """A report that tells nothing, but fails where a file is skipped: all of ours are good."""

    def listed(self, listing: Any) -> None:
        pass

    def unchanged(self, count: int) -> None:
        pass

    def noted(self, note: str) -> None:
        pass

    def embedded(self, path: str) -> None:
        pass

    def skipped(self, skip: Any) -> None:
        raise SystemExit(f"a photo was skipped: {skip.reason}, {skip.detail}")


def _encoder(model: str, dtype: str = "float32") -> Any:
    import aim_mlx

    return aim_mlx.load(model, dtype=dtype)


def _torch_device() -> str:
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def check_computed(computed: int, folder: str) -> None:
    """Ends where not every file went through the encoder: equal files are computed once."""
    count = len(os.listdir(folder))
    if computed != count:
        raise SystemExit(f"{computed} of {count} files were computed: measure on distinct ones")


def _rate(count: int, seconds: float) -> dict[str, Any]:
    return {"count": count, "seconds": seconds, "images_per_second": count / seconds}


def _checksum(vectors: np.ndarray) -> float:
    """One number that other vectors, or other rows' order, would change."""
    if not np.isfinite(vectors).all():
        raise SystemExit("a vector is not finite")
    weights = np.cos(np.arange(vectors.size, dtype=np.float64)).reshape(vectors.shape)
    return float((vectors * weights).sum())


def processor() -> str:
    import platform
    import subprocess

    if sys.platform == "darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


WORKERS: dict[str, Callable[..., dict[str, Any]]] = {
    function.__name__: function
    for function in (machine, encode_ours, encode_theirs, embed_folder, decode_folder, peak_memory)
}
WORKERS |= {"make_checkpoint": make_checkpoint, "make_photos": make_photos}
WORKERS |= {"load_ours": load_ours, "load_theirs": load_theirs}

if __name__ == "__main__":
    print(json.dumps(WORKERS[sys.argv[1]](**json.loads(sys.argv[2]))))
