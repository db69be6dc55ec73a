"""One digest for all the parameters of a network, whatever file and layout they came from."""

import hashlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from aim_mlx.backend import check_not_forked, mx, nn, tree_flatten

# NumPy has no bfloat16; its bits serve as well.
_AS_BITS = {mx.bfloat16: mx.uint16}


def parameters_digest(network: nn.Module) -> str:
    """SHA-256 in hex over names, dtypes, shapes and values of all parameters."""
    check_not_forked()
    tensors = sorted(dict(tree_flatten(network.parameters())).items())
    arrays = [value.view(_AS_BITS.get(value.dtype, value.dtype)) for _, value in tensors]
    mx.eval(arrays)
    with ThreadPoolExecutor() as threads:  # hashing releases the interpreter's lock
        digests = threads.map(_digest, [np.asarray(array) for array in arrays])
        total = hashlib.sha256()
        for (name, value), digest in zip(tensors, digests, strict=True):
            total.update(f"{name} {value.dtype} {value.shape}\n".encode())
            total.update(digest)
    return total.hexdigest()


def _digest(values: np.ndarray) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(values).data).digest()
