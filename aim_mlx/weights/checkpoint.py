"""Checkpoints as the rest of the package uses them: open, load, save."""

from aim_mlx.weights.load import iter_weights, load_into, load_weights
from aim_mlx.weights.opening import Checkpoint, open_checkpoint
from aim_mlx.weights.quantize import Quantization
from aim_mlx.weights.save import provenance, save_checkpoint

__all__ = [
    "Checkpoint",
    "Quantization",
    "iter_weights",
    "load_into",
    "load_weights",
    "open_checkpoint",
    "provenance",
    "save_checkpoint",
]
