"""One digest for all the parameters of a network, whatever file and layout they came from."""

import hashlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from aim_mlx.backend import check_not_forked, mx, nn, tree_flatten

# NumPy has no bfloat16; its bits serve as well.
_AS_BITS = {mx.bfloat16: mx.uint16}


def parameters_digest(network: nn.Module) -> str:
    """SHA-256 in hex over names, dtypes, shapes and values of all parameters."""
    check_not_forked()
    tensors = dict(tree_flatten(network.parameters()))
    arrays = [_bits(value) for value in tensors.values()]
    mx.eval(arrays)
    with ThreadPoolExecutor() as threads:  # hashing releases the interpreter's lock
        digests = threads.map(_digest, [np.asarray(array) for array in arrays])
        return _total(
            {
                name: _heading(name, value) + digest
                for (name, value), digest in zip(tensors.items(), digests, strict=True)
            }
        )


def streamed_digest(weights: Iterable[tuple[str, mx.array]]) -> str:
    """The same of weights that come one at a time, so that they need not fit in memory together."""
    return _total(
        {name: _heading(name, value) + _digest(np.asarray(_bits(value))) for name, value in weights}
    )


def _bits(value: mx.array) -> mx.array:
    return value.view(_AS_BITS.get(value.dtype, value.dtype))


def _heading(name: str, value: mx.array) -> bytes:
    return f"{name} {value.dtype} {value.shape}\n".encode()


def _digest(values: np.ndarray) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(values).data).digest()


def _total(entries: Mapping[str, bytes]) -> str:
    return hashlib.sha256(b"".join(entries[name] for name in sorted(entries))).hexdigest()
