"""Small sound checkpoints of every layout in memory, and the ways in which they are damaged.

A checkpoint is a dictionary from file names to bytes. A mutation is a name of MUTATIONS and a
seed, so that a failing case is a short list of them.
"""

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from aim_mlx.backend import mx
from aim_mlx.config import PreprocessConfig, VisionConfig, to_dict
from aim_mlx.weights.layouts import layout_named
from aim_mlx.weights.quantize import Quantization
from aim_mlx.weights.rules import from_ours
from aim_mlx.weights.save import save_checkpoint
from aim_mlx.weights.sizes import expected_shapes
from tests import towers
from tests.weights_files import DATA, as_bfloat16, crafted, read_tensors, weight_file

Files = dict[str, bytes]
Mutation = tuple[str, int]

CONFIG = VisionConfig(8, 8, 2, 2, 2, 4)
NATIVE = VisionConfig(8, 8, 2, 2, 2, None)
AIMV1 = VisionConfig(8, 8, 2, 2, 2, 4, 1e-6, "aimv1")
INDEX = "model.safetensors.index.json"
_JSON_FILES = ("config.json", "preprocessor_config.json", INDEX)


# Sound checkpoints


def checkpoint(layout: str, sharded: bool = False) -> Files:
    """A sound checkpoint: a `layout` of a table, "aim-mlx", "native", "quantised" or "lit".

    "aimv1" is as published, "aim-mlx aimv1" as we write it.
    """
    if layout == "quantised":
        return _quantised()
    if layout == "lit":
        tensors, files = _lit()
    elif layout in towers.LAYOUTS:
        tensors, files = _multimodal(layout)
    else:
        tensors, files = _vision(layout)
    names = sorted(tensors)
    if not sharded:
        mlx = layout in ("ml-aim-mlx", "native")
        file = "mlx_model.safetensors" if mlx else "model.safetensors"
        return files | {file: pack([(name, *tensors[name]) for name in names])}
    weight_map = {}
    for i in range(2):
        file = f"model-{i + 1:05}-of-00002.safetensors"
        files[file] = pack([(name, *tensors[name]) for name in names[i::2]])
        weight_map |= dict.fromkeys(names[i::2], file)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    return files | {INDEX: json.dumps(index).encode()}


Stored = tuple[str, list[int], bytes]  # dtype, shape, data
Packed = tuple[str, str, list[int], bytes]  # name, dtype, shape, data


def pack(tensors: Sequence[Packed], metadata: Mapping[str, str] | None = None) -> bytes:
    """A sound safetensors file, if the data of each tensor fit its shape."""
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    end = 0
    for name, dtype, shape, data in tensors:
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + len(data)]}
        end += len(data)
    return crafted(header, b"".join(tensor[3] for tensor in tensors))


def _vision(layout: str) -> tuple[dict[str, Stored], Files]:
    config = NATIVE if layout == "native" else AIMV1 if "aimv1" in layout else CONFIG
    preprocess = PreprocessConfig.published(config)
    layouts = {"aimv1": "ml-aim-torch"} | dict.fromkeys(
        ("aim-mlx", "native", "aim-mlx aimv1"), "ml-aim-mlx"
    )
    named = layout_named(layouts.get(layout, layout), family=config.family)
    rng = np.random.default_rng(0)
    tensors: dict[str, Stored] = {}
    for ours, shape in expected_shapes(config).items():
        values = rng.normal(0, 1, shape).astype(np.float32)
        for name, array in from_ours(named, ours, values).items():
            if layout == "timm":  # so that every stored dtype is among the seeds
                tensors[name] = "BF16", list(array.shape), as_bfloat16(array).tobytes()
            elif layout == "ml-aim-torch":
                tensors[name] = "F16", list(array.shape), array.astype(np.float16).tobytes()
            else:
                tensors[name] = "F32", list(array.shape), array.tobytes()
    files = {"config.json": _config(layout, config, preprocess)}
    if not layout.startswith(("aim-mlx", "aimv1")):
        files["preprocessor_config.json"] = _preprocessor(preprocess)
    return tensors, {name: json.dumps(values).encode() for name, values in files.items()}


def _config(layout: str, config: VisionConfig, preprocess: PreprocessConfig) -> dict[str, Any]:
    if layout == "aimv1":
        sizes = {"embed_dim": 8, "num_blocks": 2, "num_heads": 2, "mlp_ratio": 1}
        return sizes | {"img_size": 4, "patch_size": 2, "probe_layers": [0, 1]}
    if layout.startswith("aim-mlx"):
        return {
            "format": "aim-mlx",
            "format_version": 1,
            "kind": "vision",
            "encoder": to_dict(config),
            "preprocessing": to_dict(preprocess),
            "provenance": {"source": "seed", "digest": "ab", "note": ["x", 1]},
        }
    if layout == "timm":
        arguments = {"embed_dim": 8, "depth": 2, "num_heads": 2, "patch_size": 2, "img_size": 4}
        shown = {"input_size": [3, 4, 4], "crop_pct": 1.0, "mean": [0.5] * 3, "std": [0.5] * 3}
        names = {"architecture": "aimv2_tiny_patch2", "num_features": 8}
        return names | {"model_args": arguments | {"mlp_ratio": 1.0}, "pretrained_cfg": shown}
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2, "patch_size": 2}
    sizes |= {"num_attention_heads": 2, "num_channels": 3, "rms_norm_eps": 1e-5}
    model_type = "aimv2_vision_model" if layout == "transformers" else "aimv2"
    native = {"is_native": True} if config.image_size is None else {"image_size": 4}
    return sizes | native | {"model_type": model_type, "auto_map": {"AutoModel": "a.B"}}


def _preprocessor(config: PreprocessConfig) -> dict[str, Any]:
    fixed = config.crop_size is not None
    sizes = {
        "size": {"shortest_edge": config.shortest_edge},
        "crop_size": {"height": config.crop_size, "width": config.crop_size},
        "resample": 3,
    }
    return (sizes if fixed else {}) | {
        "do_resize": fixed,
        "do_center_crop": fixed,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.2, 0.3, 0.2],
    }


def _multimodal(layout: str) -> tuple[dict[str, Stored], Files]:
    rest = towers.Rest(width=4, hidden=4, blocks=1, keys=2, vocabulary=5, visual_vocabulary=9)
    preprocess = PreprocessConfig.hub(CONFIG.image_size, CONFIG.patch_size)
    files = {
        "config.json": towers.config_json(layout, CONFIG, rest),
        "preprocessor_config.json": _preprocessor(preprocess),
    }
    tensors = {
        name: ("F16", list(values.shape), values.astype(np.float16).tobytes())
        for name, values in towers.tensors(layout, CONFIG, rest)
    }
    return tensors, {name: json.dumps(values).encode() for name, values in files.items()}


def _quantised() -> Files:
    """Our own format with packed weights, which need a width of a whole group."""
    config = VisionConfig(32, 32, 1, 2, 2, 4)
    rng = np.random.default_rng(0)
    weights = {
        name: mx.array(rng.normal(0, 1, shape).astype(np.float32))
        for name, shape in expected_shapes(config).items()
    }
    preprocess = PreprocessConfig.hub(config.image_size, config.patch_size)
    with TemporaryDirectory() as folder:
        how = Quantization(4, 32)
        save_checkpoint(f"{folder}/m", weights, config, preprocess, quantization=how)
        return {path.name: path.read_bytes() for path in Path(folder, "m").iterdir()}


def _lit() -> tuple[dict[str, Stored], Files]:
    """The reference case, its first columns: as small as its shapes let it be made."""
    folder = DATA / "lit" / "transformers"
    tensors = {}
    for name, (dtype, values) in read_tensors(weight_file(folder)).items():
        tensors[name] = dtype, list(values.shape), values.tobytes()
    return tensors, {p.name: p.read_bytes() for p in sorted(folder.glob("*.json"))}


# Damage

_ODD_TOKENS: tuple[bytes, ...] = (
    b"0", b"-0", b"-1", b"1", b"2", b"3", b"1.0", b"0.5", b"1e2", b"1e400", b"-1e400", b"1e-400",
    b"01", b"+1", b"0x10", b"NaN", b"Infinity", b"-Infinity", b"null", b"true", b"false", b"[]",
    b"{}", b"[[]]", b"4294967296", b"9223372036854775807", b"9223372036854775808",
    b"18446744073709551615", b"18446744073709551616", b"1099511627776", b"9" * 30, b"9" * 400,
    b"9" * 4300, b"9" * 4301, b'""', b'"x"', b'"\\ud800"', b'"\\udc00\\ud800"', b'"\\u0000"',
    b'"\\n\\u001b[31m"', b'"a\nb"', b'"\xff"', b'"\xc3\xa9"', b'"\xed\xa0\x80"', b'"\\x41"',
    b'"' + b"A" * 5000 + b'"', b'"../x.safetensors"', b'"__metadata__"', b'"F64"', b'"F4"',
    b'"dtype"', b'{"dtype":"F32","shape":[0],"data_offsets":[0,0]}', b"[" * 40 + b"]" * 40,
    b"[" * 70 + b"]" * 70, b"[" * 970 + b"]" * 970, b"[" * 5000 + b"]" * 5000,
    b'{"a":' * 990 + b"1" + b"}" * 990, b"", b",", b":", b"//", b"'a'",
)  # fmt: skip
_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|-?[0-9][0-9.eE+-]*|true|false|null')
_FOREIGN = (
    b"", b"\0", b"{}", b"\x80\x02}q\x00.", b"PK\x03\x04" + bytes(40), b"<html></html>",
    b"version https://git-lfs.github.com/spec/v1\n", b"\x1f\x8b" + bytes(20),
    (2).to_bytes(8, "little") + b"{}", (2**62).to_bytes(8, "little") + b"{}",
)  # fmt: skip


def mutate(files: Files, mutations: Sequence[Mutation]) -> Files:
    """The files after these mutations, each with its own seed; the given ones stay as they are.

    A mutation that needs a sound file passes by one that an earlier mutation has damaged.
    """
    files = dict(files)
    for name, seed in mutations:
        try:
            MUTATIONS[name](files, Random(seed))
        except (LookupError, TypeError, ValueError, AttributeError, RecursionError):
            continue
    return files


def write(folder: Path, files: Files) -> Path:
    """Makes `folder` hold these files and no others."""
    folder.mkdir(exist_ok=True)
    present = {path.name: path for path in folder.iterdir()}
    for name, path in present.items():
        # Never cut and written again: ext4 would wait for the disk each time.
        if name not in files or path.read_bytes() != files[name]:
            path.unlink()
    for name, content in files.items():
        if not (folder / name).exists():
            (folder / name).write_bytes(content)
    return folder


def _weights(files: Files, rng: Random) -> str:
    """The name of a weight file; LookupError when a mutation took them all away."""
    return rng.choice(sorted(name for name in files if name.endswith(".safetensors")))


def _json(files: Files, rng: Random) -> str:
    return rng.choice([name for name in _JSON_FILES if name in files])


def _split(content: bytes) -> tuple[bytes, bytes]:
    """Header and data, for files that still have both."""
    length = int.from_bytes(content[:8], "little")
    return content[8 : 8 + length], content[8 + length :]


def _tensors(content: bytes) -> list[Packed]:
    """The tensors of a file that is still sound enough to be taken apart."""
    header, data = _split(content)
    tensors = []
    for name, entry in json.loads(header).items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            tensors.append((name, entry["dtype"], list(entry["shape"]), data[begin:end]))
    return tensors


def _tokens(text: bytes, rng: Random) -> bytes:
    """One to three tokens of a JSON text replaced by odd ones, or taken away."""
    found = list(_TOKEN.finditer(text))
    for match in sorted(rng.sample(found, min(len(found), rng.randint(1, 3))), reverse=True,
                        key=lambda match: match.start()):  # fmt: skip
        other = rng.choice(found).group() if rng.random() < 0.3 else rng.choice(_ODD_TOKENS)
        text = text[: match.start()] + other + text[match.end() :]
    return text


def _bytes(content: bytes, rng: Random, end: int | None = None) -> bytes:
    """Up to eight bytes changed, put in or taken out before `end`."""
    changed = bytearray(content)
    for _ in range(rng.randint(1, 8)):
        place = rng.randrange((end if end is not None else len(changed)) + 1)
        action = rng.randrange(3)
        new = (
            rng.choice(b'\0\xff"{}[]:,\\09-.eE\n \x80')
            if rng.random() < 0.5
            else rng.randrange(256)
        )
        if action == 0 and place < len(changed):
            changed[place] = new
        elif action == 1:
            changed.insert(place, new)
        elif place < len(changed):
            del changed[place]
    return bytes(changed)


def _header_tokens(files: Files, rng: Random) -> None:
    name = _weights(files, rng)
    header, data = _split(files[name])
    files[name] = crafted(_tokens(header, rng), data)


def _header_bytes(files: Files, rng: Random) -> None:
    name = _weights(files, rng)
    header, data = _split(files[name])
    files[name] = crafted(_bytes(header, rng), data)


def _header_twice(files: Files, rng: Random) -> None:
    """A tensor, or a field of one, stated twice."""
    name = _weights(files, rng)
    header, data = _split(files[name])
    members = [m.start() for m in re.finditer(rb'"[^"]+": ?(?:\{[^{}]*\}|"[^"]*")', header)]
    if members:
        start = rng.choice(members)
        match = re.compile(rb'"[^"]+": ?(?:\{[^{}]*\}|"[^"]*")').match(header, start)
        text = b"" if match is None else match.group() + b","
        files[name] = crafted(header[:start] + text + header[start:], data)


def _header_length(files: Files, rng: Random) -> None:
    name = _weights(files, rng)
    header, data = _split(files[name])
    length = len(header)
    odd = (0, 1, 2, length - 1, length + 1, length + len(data), 2 * length, 2**31, 2**62)
    odd += (2**63, 2**64 - 1, 2**64 - 8, rng.randrange(2**64), rng.randrange(2 * length + 2))
    files[name] = crafted(header, data, max(0, rng.choice(odd)))


def _header_spaces(files: Files, rng: Random) -> None:
    name = _weights(files, rng)
    header, data = _split(files[name])
    space = rng.choice((b" ", b"\n", b"\t", b"\0", b"\xc2\xa0", b"\x0b")) * rng.randint(1, 9)
    files[name] = crafted(rng.choice((header + space, space + header)), data)


def _offsets(files: Files, rng: Random) -> None:
    """Two tensors exchange or share their bytes, or one is moved."""
    name = _weights(files, rng)
    if tensors := _tensors(files[name]):
        header, data = _split(files[name])
        entries = json.loads(header)
        one, other = (entries[rng.choice(tensors)[0]] for _ in range(2))
        action = rng.randrange(4)
        if action == 0:
            one["data_offsets"], other["data_offsets"] = other["data_offsets"], one["data_offsets"]
        elif action == 1:
            one["data_offsets"] = other["data_offsets"]
        elif action == 2:
            step = rng.choice((-4, -1, 1, 2, 4, 2**32, 2**64))
            one["data_offsets"] = [at + step for at in one["data_offsets"]]
        else:
            one["data_offsets"] = one["data_offsets"][::-1]
        files[name] = crafted(entries, data)


def _zeros(dtype: str, shape: list[int]) -> bytes:
    nbytes = math.prod(shape) * {"F64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2}.get(dtype, 1)
    if not 0 <= nbytes < 2**20:
        raise ValueError("an earlier mutation made this shape too large for a small file")
    return bytes(nbytes)


def _sound_file(files: Files, rng: Random) -> None:
    """Another set of tensors in a file that is sound: what follows the header is at stake."""
    name = _weights(files, rng)
    tensors = _tensors(files[name])
    place = rng.randrange(len(tensors))
    key, dtype, shape, data = tensors[place]
    action = rng.randrange(9)
    if action == 0:
        del tensors[place]
    elif action == 1:
        number = rng.choice(("0", "1", "2", "3", "02", "9999", "99999", "-1", "\u0661"))
        tensors[place] = (re.sub(r"\.\d+\.", f".{number}.", key), dtype, shape, data)
    elif action == 2:
        odd = ("", "\0", "a\nb", "\x1b[2J", "\u202e", "é", "x" * 3000, "_", "trunk", key + ".extra")
        tensors.append((rng.choice(odd), dtype, shape, data))
    elif action == 3:
        shape = [rng.choice((0, 1, 2, 3, 4, 8, 9)) for _ in range(rng.randrange(6))]
        tensors[place] = (key, dtype, shape, _zeros(dtype, shape))
    elif action == 4:
        tensors[place] = (key, dtype, shape[::-1], data)
    elif action == 5:
        other = rng.choice(("F64", "F32", "F16", "BF16", "I32", "U8", "BOOL", "F8_E4M3"))
        tensors[place] = (key, other, shape, _zeros(other, shape))
    elif action == 6:
        tensors.append(rng.choice(tensors)[:1] + (dtype, shape, data))
    elif action == 7:
        tensors[place] = (rng.choice(_OTHER_LAYOUTS), dtype, shape, data)
    else:
        rng.shuffle(tensors)
    odd = {"aim_mlx_trained": rng.choice(("false", "true", "", "\n"))}
    files[name] = pack(tensors, odd if rng.random() < 0.3 else None)


_OTHER_LAYOUTS = (
    "preprocessor.patchifier.proj.weight", "embeddings.patch_embed.weight", "pos_embed",
    "patch_embed.proj.weight",
    "trunk.post_trunk_norm.weight", "rms_norm.weight", "norm.weight", "preprocessor.pos_embed",
    "image_encoder.head.cls_token", "log_logit_scale", "logit_scale",
    "trunk.blocks.0.attn.qkv.weight", "encoder.layers.0.attention.q_proj.weight",
    "visual_tokenizer.backbone.trunk.post_trunk_norm.weight", "vision_model.preprocessor.pos_embed",
    "model.vision_tower.transformer.embeddings.patch_embedding.weight", "llm.lm_head.weight",
)  # fmt: skip


def _not_finite(files: Files, rng: Random) -> None:
    name = _weights(files, rng)
    if tensors := _tensors(files[name]):
        place = rng.randrange(len(tensors))
        key, dtype, shape, data = tensors[place]
        bits = rng.choice(
            (b"\xff\xff\xff\xff", b"\0\0\x80\x7f", b"\x01\x7c\x01\x7c", b"\0\0\x80\xff")
        )
        start = 4 * rng.randrange(len(data) // 4 + 1)
        tensors[place] = (key, dtype, shape, (data[:start] + bits + data[start + 4 :])[: len(data)])
        files[name] = pack(tensors)


def _raw(files: Files, rng: Random) -> None:
    name = rng.choice(sorted(files))
    files[name] = _bytes(files[name], rng, min(len(files[name]), 400))


def _cut(files: Files, rng: Random) -> None:
    name = rng.choice(sorted(files))
    content = files[name]
    keep = rng.choice((rng.randrange(len(content) + 1), len(content) - 1, 8, 9, 10))
    files[name] = content[: max(0, keep)]


def _grown(files: Files, rng: Random) -> None:
    name = rng.choice(sorted(files))
    files[name] += rng.choice((b"\0", b" ", b"\n", rng.randbytes(4), bytes(4096), b"}"))


def _json_tokens(files: Files, rng: Random) -> None:
    name = _json(files, rng)
    files[name] = _tokens(files[name], rng)


def _json_values(files: Files, rng: Random) -> None:
    """A value at any depth replaced, taken away or doubled; the text stays sound JSON."""
    name = _json(files, rng)
    values = json.loads(files[name])
    container, key = rng.choice(list(_places(values)))
    action = rng.randrange(3)
    if action == 0:
        container[key] = json.loads(rng.choice(_SOUND_TOKENS))
    elif action == 1:
        del container[key]
    else:
        container[key] = [container[key], container[key]]
    files[name] = json.dumps(values).encode()


def _sound(token: bytes) -> bool:
    try:
        json.loads(token)
        return True
    except (ValueError, RecursionError):
        return False


_SOUND_TOKENS = [token for token in _ODD_TOKENS if _sound(token)]


def _places(values: Any) -> Iterator[tuple[Any, Any]]:
    waiting = [values]
    while waiting:
        value = waiting.pop()
        keys = list(value) if isinstance(value, dict) else range(len(value))
        for key in keys:
            yield value, key
            if isinstance(value[key], (dict, list)):
                waiting.append(value[key])


def _other_files(files: Files, rng: Random) -> None:
    """A file taken away, replaced, renamed or copied."""
    name = rng.choice(sorted(files))
    action = rng.randrange(4)
    names = (*_JSON_FILES, "model.safetensors", "mlx_model.safetensors", "pytorch_model.bin")
    if action == 0:
        del files[name]
    elif action == 1:
        files[name] = rng.choice(_FOREIGN)
    elif action == 2:
        files[rng.choice(names)] = files.pop(name)
    else:
        files[rng.choice(names)] = files[name]


MUTATIONS: dict[str, Callable[[Files, Random], None]] = {
    "header tokens": _header_tokens,
    "header bytes": _header_bytes,
    "header twice": _header_twice,
    "header length": _header_length,
    "header spaces": _header_spaces,
    "offsets": _offsets,
    "sound file": _sound_file,
    "not finite": _not_finite,
    "raw": _raw,
    "cut": _cut,
    "grown": _grown,
    "json tokens": _json_tokens,
    "json values": _json_values,
    "other files": _other_files,
}
