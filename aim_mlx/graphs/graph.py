"""What a file for apps computes: a model, a head on it, its dtype and its shapes.

A function's input is RGB from 0 to 255, "image" (B, H, W, 3) uint8, or for the text tower "ids"
(B, L) int32. Its output is float32: "embedding" (B, P) of length one, "tokens" (B, N, D),
"probabilities" (B, C) or "scores" (B, C).

A format is a module that has `write(graph, path)`, which makes a file or folder that is not there
yet, and `run(graph, path, inputs)`, which reads it back and computes each function: inputs and
outputs are NumPy arrays by the function's name.
"""

import math
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from aim_mlx.backend import mx, return_memory, tree_flatten, tree_map
from aim_mlx.config import to_dict
from aim_mlx.encoder.encoder import EmbedOptions, Encoder
from aim_mlx.errors import UsageError
from aim_mlx.graphs.forward import FLOAT32, Forward, Weights
from aim_mlx.graphs.ops import Ops, T
from aim_mlx.models.pooling import normalized, pool
from aim_mlx.models.query_attention import folded_queries
from aim_mlx.probe.losses import probabilities
from aim_mlx.probe.probe import AttentiveProbe
from aim_mlx.weights.checkpoint import Checkpoint, open_checkpoint
from aim_mlx.weights.convert import probe_pictures
from aim_mlx.weights.load import iter_weights
from aim_mlx.weights.quantize import Quantization, packed_names, unpack
from aim_mlx.words.lit import LiT, as_lit
from aim_mlx.words.zeroshot import ZeroShotHead

DTYPES = ("float16", "float32")
HEADS = ("embedding", "tokens", "text")
_LARGEST_BATCH = 1024

Head = str | AttentiveProbe | ZeroShotHead


@dataclass(frozen=True, eq=False)
class Graph:
    """A network to write down: `head` is one of HEADS, a probe or saved labels of a LiT model.

    `batches` are the batch sizes, one function each; `size` (H, W) is that of the pictures, which
    only a native-resolution model leaves open. Raises UsageError for what the model cannot do,
    CheckpointError for a head of another model.
    """

    encoder: Encoder
    head: Head = "embedding"
    dtype: str = "float16"
    batches: tuple[int, ...] = (1,)
    size: tuple[int, int] | None = None
    _files: Checkpoint | None = field(default=None, init=False, repr=False)

    def __post_init__(self):
        if self.dtype not in DTYPES:
            raise UsageError(f"dtype must be {' or '.join(DTYPES)}, got {self.dtype!r:.80}")
        if not self.batches or len(set(self.batches)) < len(self.batches):
            raise UsageError(f"expected batch sizes, each once, got {self.batches!r:.80}")
        for batch in self.batches:
            if type(batch) is not int or not 1 <= batch <= _LARGEST_BATCH:
                raise UsageError(
                    f"a batch size must be a whole number from 1 to {_LARGEST_BATCH}, got {batch!r}"
                )
        if isinstance(self.head, AttentiveProbe):
            self.head.check(self.encoder)
        elif isinstance(self.head, ZeroShotHead):
            self.head.check(as_lit(self.encoder).weights_digest)
            if len(self.head.labels) == 1:
                raise UsageError("a softmax over one label says nothing: save several labels")
        elif self.head == "text":
            as_lit(self.encoder)
        elif self.head not in HEADS:
            raise UsageError(f"head must be one of {', '.join(HEADS)}, got {self.head!r:.80}")
        object.__setattr__(self, "size", self._checked_size())

    @property
    def functions(self) -> dict[str, int]:
        """The functions by name, with their batch sizes: "main", or "batch_1", "batch_8"."""
        if len(self.batches) == 1:
            return {"main": self.batches[0]}
        return {f"batch_{batch}": batch for batch in self.batches}

    @property
    def input_name(self) -> str:
        return "ids" if self.head == "text" else "image"

    @property
    def input_dtype(self) -> str:
        return "int32" if self.head == "text" else "uint8"

    def input_shape(self, batch: int) -> tuple[int, ...]:
        """(B, H, W, 3) or (B, L)."""
        if self.head == "text":
            return batch, as_lit(self.encoder).lit.config.text.context_length
        return (batch, *self._size, 3)

    @property
    def output_name(self) -> str:
        if isinstance(self.head, AttentiveProbe):
            return "probabilities"
        if isinstance(self.head, ZeroShotHead):
            return "scores"
        return "tokens" if self.head == "tokens" else "embedding"

    def output_shape(self, batch: int) -> tuple[int, ...]:
        """(B, P), (B, N, D) or (B, C)."""
        if self.labels:
            return batch, len(self.labels)
        if self.head == "tokens":
            return batch, math.prod(self._grid), self.encoder.model.config.embed_dim
        return batch, self.encoder.dim(EmbedOptions())

    @property
    def labels(self) -> tuple[str, ...]:
        """What the columns of probabilities and scores stand for."""
        if isinstance(self.head, AttentiveProbe):
            return self.head.classes
        return self.head.labels if isinstance(self.head, ZeroShotHead) else ()

    @property
    def title(self) -> str:
        """What it is, in a few words."""
        return f"{self._model or 'AIMv2'}: {self.output_name}"

    @cached_property
    def metadata(self) -> dict[str, Any]:
        """What the file says of itself, as JSON values, none of them null."""
        preprocessing = to_dict(self.encoder.preprocessing)
        said: dict[str, Any] = {
            "model": self._model,
            "weights": self.encoder.weights_digest,
            "trained": self.encoder.trained,
            "head": self.head if isinstance(self.head, str) else self.output_name,
            "dtype": self.dtype,
            "batches": list(self.batches),
            "preprocessing": {k: v for k, v in preprocessing.items() if v is not None},
            "aim_mlx": version("aim-mlx"),
        }
        if isinstance(self.encoder, LiT):
            said["logit_scale"] = float(self.encoder.lit.logit_scale)
        return said | ({"labels": list(self.labels)} if self.labels else {})

    def build(self, ops: Ops[T], x: T, batch: int) -> T:
        """The output of a function from its input, in a format's operations."""
        forward = Forward(ops, self.weights, self.dtype, batch)
        if self.head == "text":
            return self._text(forward, x)
        layers = self.head.layers if isinstance(self.head, AttentiveProbe) else ()
        tokens = forward.image_tokens(
            x,
            self.encoder.model.config,
            self.encoder.preprocessing,
            self._grid,
            layers,
            self._image,
        )
        if isinstance(self.head, AttentiveProbe):
            return _probabilities(forward, tokens, self.head)
        if self.head == "tokens":
            return ops.cast(tokens, FLOAT32)
        vectors = self._embedding(forward, tokens)
        if isinstance(self.head, ZeroShotHead):
            cosines = forward.linear(vectors, "labels", self.head.vectors, FLOAT32)
            return ops.softmax(forward.scaled(cosines, self.head.scale))
        return vectors

    def weights(self, name: str) -> np.ndarray:
        """A parameter by its name, in float32; one that is quantised comes unpacked."""
        if self._files is not None:
            return np.asarray(dict(iter_weights(self._files, mx.float32, name))[name])
        parameters = dict(tree_flatten(self.encoder.network.parameters()))
        array = parameters[name]
        if f"{name.removesuffix('weight')}scales" in parameters:
            how = Quantization(**self.encoder.identity["quantization"])
            parts = [parameters[part] for part in packed_names(name, how)]
            array = unpack(parts, how, mx.float32)
        return np.asarray(array.astype(mx.float32))

    def release(self) -> None:
        """Empties the encoder's network: from now on parameters are read from its files, by one.

        So a file is written with a tensor of the network in memory at a time. Raises
        CheckpointError for files that are not what was loaded.
        """
        files = open_checkpoint(self.encoder.identity["path"])
        self.metadata  # noqa: B018 - made, and kept, while there is a network
        object.__setattr__(self, "_files", files)
        network = self.encoder.network
        network.update(tree_map(lambda _: mx.zeros(0), network.parameters()))
        return_memory()

    def sample(self, batch: int) -> np.ndarray:
        """An input of a function: pictures of several kinds, or texts of several lengths."""
        shape = self.input_shape(batch)
        if self.head == "text":
            config = as_lit(self.encoder).lit.config.text
            ids = np.random.default_rng(0).integers(0, config.vocab_size, shape)
            for row in range(batch):
                ids[row, 1 + (7 * row + 3) % (shape[1] - 1) :] = config.eos_token_id
            return ids.astype(np.int32)
        pictures = probe_pictures(max(self._size))[:, : shape[1], : shape[2]]
        return np.resize(pictures[[1, 0, 2, 3]], shape)

    def expected(self, x: np.ndarray) -> np.ndarray:
        """What MLX gives for a function's input, float32."""
        if self.head == "text":
            return np.array(normalized(as_lit(self.encoder).encode_text(x)))
        preprocessing = self.encoder.preprocessing
        pixels = (x / 255 - np.array(preprocessing.mean)) / np.array(preprocessing.std)
        if isinstance(self.head, AttentiveProbe):
            tokens = self.encoder.tokens(mx.array(pixels.astype(np.float32)), self.head.layers)
            logits = np.array(self.head.head(tokens))
            return probabilities(logits, self.head.multi_label)
        if isinstance(self.encoder, LiT) and self.head != "tokens":
            vectors = np.array(normalized(self.encoder.encode_image(pixels)))
            return self.head.scores(vectors) if isinstance(self.head, ZeroShotHead) else vectors
        tokens = self.encoder.features(pixels).tokens
        if self.head == "tokens":
            return np.array(tokens.astype(mx.float32))
        return np.array(normalized(pool(tokens, self.encoder.pooling(EmbedOptions()))))

    @property
    def _model(self) -> str:
        """The model's name, without the folders that it lies in here."""
        return Path(self.encoder.identity.get("model") or "").name

    @property
    def _size(self) -> tuple[int, int]:
        assert self.size is not None  # set as it was checked
        return self.size

    @property
    def _grid(self) -> tuple[int, int]:
        p = self.encoder.model.config.patch_size
        return self._size[0] // p, self._size[1] // p

    @property
    def _image(self) -> str:
        """What the names of the vision encoder's parameters begin with."""
        return "image_encoder." if isinstance(self.encoder, LiT) else ""

    def _checked_size(self) -> tuple[int, int]:
        config = self.encoder.model.config
        own, p = config.image_size, config.patch_size
        if own is not None:
            if self.size not in (None, (own, own)):
                raise UsageError(f"this model takes {own} x {own} images: leave out the size")
            return own, own
        if self.size is None:
            raise UsageError("this model takes images of any size, a graph of one: give the size")
        if any(side < p or side % p for side in self.size):
            raise UsageError(f"height and width must be multiples of {p}, got {self.size}")
        return self.size

    def _embedding(self, forward: Forward[T], tokens: T) -> T:
        """Tokens (B, N, D) -> vectors of length one, by the model's own pooling."""
        D = self.encoder.model.config.embed_dim
        if not isinstance(self.encoder, LiT):
            return forward.unit(forward.pooled(tokens, D), D)
        config, name = self.encoder.lit.config, f"{self._image}head."
        heads = config.vision.num_heads
        token, keys = (
            mx.array(self.weights(f"{name}{each}")) for each in ("cls_token", "k.weight")
        )
        queries = np.array(folded_queries(token[0], keys, heads))
        means = forward.attended(tokens, queries, f"{name}k")
        x = forward.projected(means, self.weights(f"{name}v.weight"), heads, f"{name}v")
        x = _linear(forward, x, f"{name}linear", self.weights)
        projector = self.weights("image_projector.weight")
        x = forward.linear(x, "image_projector", projector, FLOAT32)
        return forward.unit(x, config.projection_dim)

    def _text(self, forward: Forward[T], ids: T) -> T:
        config = as_lit(self.encoder).lit.config
        L = config.text.context_length
        x = forward.text_vectors(ids, config.text, L, "text_encoder.")
        x = forward.linear(x, "text_projector", self.weights("text_projector.weight"), FLOAT32)
        return forward.unit(x, config.projection_dim)


def _probabilities(forward: Forward[T], tokens: T, probe: AttentiveProbe) -> T:
    """A probe's head, as `Head.__call__` has it: tokens (B, N, D) -> probabilities (B, C)."""
    head, config = probe.head, probe.head.config
    norm = head.bn.normalisation if config.batch_norm else None
    parameters = dict(tree_flatten(head.parameters()))

    def weights(name: str) -> np.ndarray:
        return np.array(parameters[name.removeprefix("probe.")], np.float32)

    if config.attends:
        x = forward.attended(tokens, np.array(head.queries(norm), np.float32), "probe.queries")
        if config.kind == "ep":
            x = forward.projected(x, weights("probe.v.weight"), config.queries, "probe.v")
        else:
            x = forward.averaged(x, config.queries, config.heads, config.dim)
    else:
        x = forward.pooled(tokens, config.dim, config.kind)
    if norm is not None:
        x = forward.add(x, "probe.mean", -np.array(norm.mean, np.float32))
        x = forward.scaled(x, np.array(norm.inverse, np.float32))
    if config.normalises_tokens:
        x = forward.projected(x, weights("probe.v.weight"), config.heads, "probe.v")
    if config.kind == "coca":
        x = _linear(forward, x, "probe.proj", weights)
    x = _linear(forward, x, "probe.linear", weights, config.bias)
    return forward.ops.sigmoid(x) if probe.multi_label else forward.ops.softmax(x)


def _linear(forward: Forward[T], x: T, name: str, weights: Weights, bias: bool = True) -> T:
    """A layer of a head, in float32."""
    x = forward.linear(x, name, weights(f"{name}.weight"), FLOAT32)
    return forward.add(x, f"{name}.bias", weights(f"{name}.bias")) if bias else x
