"""Whether stored weights are finite, by their bits."""

import numpy as np

# The stored dtype -> its bits as signed and as unsigned integers, and those of infinity.
_BITS = {
    "F32": ("<i4", "<u4", 0x7F800000),
    "F16": ("<i2", "<u2", 0x7C00),
    "BF16": ("<i2", "<u2", 0x7F80),
}


def all_finite(array: np.ndarray, dtype: str) -> bool:
    """Whether no value is NaN or infinite; `dtype` as in safetensors, bfloat16 as its raw bits.

    Two passes without a temporary: read as signed integers the largest value is the largest
    positive one, read as unsigned integers it is the largest negative one.
    """
    signed, unsigned, infinity = _BITS[dtype]
    if not array.size:
        return True
    negative_infinity = infinity | 1 << (8 * array.itemsize - 1)
    return bool(
        array.view(signed).max() < infinity and array.view(unsigned).max() < negative_infinity
    )
