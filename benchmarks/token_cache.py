"""`python -m benchmarks.token_cache`: a large cache, killed over and over, within its limit.

The encoder costs nothing and gives tokens of real size, other ones for each image. While the cache
fills, its size is looked at all the time; the process is killed at random times until the last one
may finish. Then every image's tokens are compared.
"""

import argparse
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from stat import S_ISREG
from types import SimpleNamespace
from typing import Any

import numpy as np

_FOLDER = 1000  # files in a folder
_POLL = 0.01  # seconds between two looks at the folder's size
_CHECKED = 64  # images compared at a time


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.token_cache", description=__doc__)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--kills", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0, help="of the times at which it is killed")
    parser.add_argument("--folder", help="where to measure; default: the temporary folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        make_files(folder / "images", options.images)
        needed = worker("needed", folder)["bytes"]
        results: dict[str, Any] = {"images": options.images, "limit_bytes": needed}
        results["refused"] = worker("fill", folder, needed - 1)
        assert "error" in results["refused"], "a cache took more than its limit"
        results["filling"] = _filled(folder, needed, options.kills, random.Random(options.seed))
        results["opening_cold"] = worker("opened", folder, True)
        results["opening"] = worker("opened", folder, False)
        results["checking"] = worker("checked", folder)
        assert results["checking"]["images"] == options.images
    print(json.dumps(results, indent=1))


def _filled(folder: Path, limit: int, kills: int, rng: random.Random) -> dict[str, Any]:
    """Fills the cache, killed at random times; how it grew, and the most that it ever held."""
    most, runs = 0, []
    for number in range(kills + 1):
        before = shards(folder / "cache")
        process = subprocess.Popen(command("fill", folder, limit), stdout=subprocess.PIPE)
        started = time.monotonic()
        ends = rng.uniform(2, 25) if number < kills else np.inf
        while process.poll() is None:
            most = max(most, size(folder / "cache"))
            if time.monotonic() - started > ends:
                process.send_signal(signal.SIGKILL)
                process.wait()
            time.sleep(_POLL)
        after = shards(folder / "cache")
        assert before.items() <= after.items(), "a finished shard was lost or written again"
        output = process.communicate()[0]
        runs.append(json.loads(output) if output else {"killed_after": round(ends, 1)})
        runs[-1]["shards_added"] = len(after) - len(before)
        print(runs[-1], file=sys.stderr)
        if output:
            break
    assert most <= limit, f"{most} bytes passed the limit of {limit}"
    return {"runs": runs, "largest_bytes": most, "final_bytes": size(folder / "cache")}


def size(folder: Path) -> int:
    """Bytes of all files in a folder, which is what the limit counts."""
    total = 0
    for path in folder.rglob("*"):
        try:
            stat = path.lstat()
            total += stat.st_size if S_ISREG(stat.st_mode) else 0
        except FileNotFoundError:  # renamed since
            pass
    return total


def shards(folder: Path) -> dict[str, tuple[int, int]]:
    """The finished shards as they are: size and time of the last change."""
    stats = {path.name: path.stat() for path in folder.glob("*/tokens-*.npy")}
    return {name: (stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()}


def command(name: str, *arguments: Any) -> list[str]:
    texts = json.dumps([str(each) if isinstance(each, Path) else each for each in arguments])
    return [sys.executable, "-m", "benchmarks.token_cache", "--worker", name, texts]


def worker(name: str, *arguments: Any) -> dict[str, Any]:
    """Runs one function of this module in a fresh process."""
    done = subprocess.run(command(name, *arguments), capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr}")
    print(name, arguments[1:], done.stdout.strip(), file=sys.stderr)
    return json.loads(done.stdout)


def make_files(folder: Path, count: int) -> None:
    """Files of a few bytes, each with its number for content."""
    for number in range(count):
        part = folder / f"{number // _FOLDER:04}"
        part.mkdir(parents=True, exist_ok=True)
        (part / f"IMG_{number:08}.jpg").write_text(str(number))


def needed(folder: str) -> dict[str, Any]:
    """What the cache says that it will take."""
    return {"bytes": _opener(folder)().bytes_to_add(list(_images(folder)))}


def fill(folder: str, limit: int) -> dict[str, Any]:
    from aim_mlx.errors import UsageError
    from aim_mlx.tokens import cache as token_cache

    token_cache.frozen_tokens = _tokens  # pyright: ignore[reportAttributeAccessIssue]
    images, open_cache = _images(folder), _opener(folder, limit)
    before, started = _peak(), time.perf_counter()
    try:
        skips = open_cache().fill(images)
    except UsageError as error:
        return {"error": str(error)[:40]}
    assert not skips
    return {"seconds": time.perf_counter() - started, "peak_bytes": _peak() - before}


def opened(folder: str, cold: bool) -> dict[str, Any]:
    """Seconds and memory to open the cache and to find every image in it."""
    digests, open_cache = list(_images(folder)), _opener(folder)
    if cold:
        _forget(Path(folder, "cache"))
    before, started = _peak(), time.perf_counter()
    cache = open_cache()
    seconds = time.perf_counter() - started
    rows = cache.rows(digests)
    whole = time.perf_counter() - started
    assert not cache.missing(digests) and rows.shape == (256, 1024)
    return {"seconds": seconds, "with_rows_seconds": whole, "peak_bytes": _peak() - before}


def checked(folder: str) -> dict[str, Any]:
    """Compares all tokens with what the encoder gave, image by image."""
    images = _images(folder)
    rows = _opener(folder)().rows(list(images))
    numbers = [int(Path(path).stem[4:]) for path, _ in images.values()]
    started = time.perf_counter()
    for start in range(0, len(numbers), _CHECKED):
        part = range(start, min(start + _CHECKED, len(numbers)))
        for number, tokens in zip(numbers[part.start :], rows.batch(part), strict=False):
            assert np.array_equal(tokens, pattern(number)), f"image {number} has other tokens"
    return {"images": len(numbers), "seconds": time.perf_counter() - started}


def pattern(number: int) -> np.ndarray:
    """The tokens of an image: no two alike, and no two within an image."""
    tokens = np.arange(256 * 1024, dtype=np.uint32) * np.uint32(2654435761) + np.uint32(number)
    bits = (tokens >> 18).astype(np.uint16) + np.uint16(number & 0xFFF)  # of finite numbers
    return bits.view(np.float16).reshape(256, 1024)


def _tokens(encoder: Any, paths: Any, layers: Any, images: Any, block: Any, places: Any) -> Any:
    """As aim_mlx.tokens.source.frozen_tokens(), at no cost."""
    from aim_mlx.encoder.encoder import Embedded

    for index in places:
        tokens = pattern(int(Path(paths[index]).stem[4:]))
        yield Embedded(index, paths[index], width=1, height=1, output=tokens)


def _images(folder: str) -> dict[str, Any]:
    from aim_mlx.images.contents import read_content

    paths = sorted(str(path) for path in Path(folder, "images").rglob("*.jpg"))
    contents = [read_content(path) for path in paths]
    return {c.digest: (path, c) for path, c in zip(paths, contents, strict=True)}


def _opener(folder: str, limit: int | None = None) -> Callable[[], Any]:
    """Opens the cache; what it needs is imported before."""
    from aim_mlx.config import PreprocessConfig
    from aim_mlx.encoder.encoder import Encoder
    from aim_mlx.registry import MODELS
    from aim_mlx.tokens.cache import TokenCache

    model: Any = SimpleNamespace(config=MODELS["aimv2-large-patch14-224"].config)
    stub = Encoder(model, PreprocessConfig.hub(224))
    stub.weights_digest = "0" * 64
    return lambda: TokenCache(Path(folder, "cache"), stub, limit=limit)


def _forget(folder: Path) -> None:
    """Puts the files of a folder out of the system's memory."""
    for path in folder.rglob("*.npy"):
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _peak() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        print(json.dumps(globals()[sys.argv[2]](*json.loads(sys.argv[3]))))
    else:
        main()
