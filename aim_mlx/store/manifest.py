"""The manifest of a store: everything that decides its vectors, so that no two kinds ever mix."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from aim_mlx.backend import device_name, dtype_name
from aim_mlx.config import to_dict
from aim_mlx.encoder.encoder import EmbedOptions, Encoder
from aim_mlx.errors import OutputError
from aim_mlx.files import disk_errors, publish, read_regular
from aim_mlx.models.pooling import ALL_POOLINGS
from aim_mlx.store.lists import FLAG, PATH, TEXT, Damaged, check, matching, maybe, parse, whole

NAME = "manifest.json"
SCHEMA = 1
_REPAIR = "restore it, or embed again with --overwrite"
_PACKAGES = ("aim-mlx", "mlx", "mlx-data", "numpy", "pillow", "pyarrow")

_LARGEST = 4 << 20  # bytes; one has some 2,000
_SCHEMA = {"schema": whole(1)}
_FORM = {
    "model": {
        "model": TEXT,
        "path": PATH,
        "revision?": maybe(TEXT),
        "adapter?": PATH,
        "packed?": FLAG,
    },
    "weights": TEXT,
    "encoder": {},
    "preprocessing": {},
    "pooling": matching("|".join(ALL_POOLINGS), f"one of {', '.join(ALL_POOLINGS)}"),
    "layers": [whole(-(2**10), 2**10)],
    "normalized": FLAG,
    "dtype": matching("float32|float16|bfloat16", "float32, float16 or bfloat16"),
    "dim": whole(1, 2**20),
    "block": whole(1, 2**31),
}

# What two runs must share to write into one store, in words for the message.
_DECISIVE = {
    "dtype": "dtype",  # before the weights, which are others in another
    "weights": "weights",
    "encoder": "encoder",
    "preprocessing": "preprocessing",
    "pooling": "pooling",
    "layers": "layers",
    "normalized": "normalisation",
    "dim": "vector length",
}


def describe(encoder: Encoder, options: EmbedOptions) -> dict[str, Any]:
    """All that is needed to compute the same vectors again, as JSON values."""
    return {
        "schema": SCHEMA,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": encoder.identity,
        "weights": encoder.weights_digest,
        "encoder": to_dict(encoder.model.config),
        "preprocessing": to_dict(encoder.preprocessing),
        "pooling": encoder.pooling(options),
        "layers": list(options.layers),
        "normalized": options.normalize,
        "dtype": dtype_name(encoder.dtype),
        "dim": encoder.dim(options),
        "device": device_name(),
        "versions": {package: version(package) for package in _PACKAGES},
    }


def read(folder: Path) -> dict[str, Any]:
    """The manifest of a store; raises OutputError where there is none that can be read."""
    path = folder / NAME
    with disk_errors("read", path):
        try:
            data = read_regular(path, _LARGEST)
        except FileNotFoundError as error:
            raise OutputError(
                f"{str(folder)!r} is not a store of embeddings, it has no {NAME}: "
                "make one with: aim-mlx embed PHOTOS -o FOLDER"
            ) from error
    try:
        manifest = parse(data, _SCHEMA)
        if manifest["schema"] > SCHEMA:
            raise OutputError(
                f"{str(folder)!r} has schema {manifest['schema']}, this aim-mlx knows {SCHEMA}: "
                "update aim-mlx"
            )
        check(manifest, _FORM)
    except Damaged as error:
        raise OutputError(f"{str(path)!r} is damaged ({error}): {_REPAIR}") from error
    return manifest


def write(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Publishes the manifest; raises OSError."""
    text = json.dumps(manifest, indent=1).encode() + b"\n"
    publish({folder / NAME: text})


def difference(there: Mapping[str, Any], here: Mapping[str, Any]) -> str | None:
    """The first entry in which two manifests describe different vectors, None if they do not."""
    return next((name for name in _DECISIVE if there[name] != here[name]), None)


def check_same(folder: Path, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Raises OutputError, naming what differs, where two manifests describe different vectors."""
    if (name := difference(there, here)) is not None:
        models = [each["model"]["model"] for each in (there, here)]
        if name != "weights":
            before, now = (f"{_DECISIVE[name]} {_short(each[name])}" for each in (there, here))
        elif models[0] != models[1]:
            before, now = (f"the model {_short(model)}" for model in models)
        else:
            before, now = f"other weights of {_short(models[0])}", "new ones"
        same = f"pass --dtype {there['dtype']}, " if name == "dtype" else ""
        raise OutputError(
            f"{str(folder)!r} was made with {before}, this run has {now}: "
            f"{same}choose another output, or pass --overwrite"
        )


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 100 else f"{text[:97]}..."
