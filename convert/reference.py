"""The PyTorch reference with the weights of a source: transformers' AIMv2, or AIMv1's formulas."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from aim_mlx.backend import mx
from aim_mlx.config import VisionConfig
from aim_mlx.errors import AimError, CheckpointError
from aim_mlx.weights.checkpoint import Checkpoint
from aim_mlx.weights.layouts import layout_named
from aim_mlx.weights.rules import Layout, from_ours
from aim_mlx.weights.safetensors_file import TensorReader
from aim_mlx.weights.strict_json import show
from convert.conversion import load_one
from convert.reference_aimv1 import aimv1_outputs
from convert.tensors import require_torch

# The image tower of a LiT model: (prefix of the tower, prefix of what pools its tokens).
OUR_TOWER = ("image_encoder.", "image_encoder.head.")
_THEIR_TOWER = ("vision_model.", "vision_model.head.")

Outputs = dict[str, np.ndarray]


def require_reference() -> None:
    """Raises AimError where torch or transformers is missing, before any work."""
    require_torch()
    try:
        from transformers import Aimv2VisionModel  # noqa: F401
    except ImportError as error:
        raise AimError(
            "--verify needs transformers with AIMv2: pip install -e '.[parity]'"
        ) from error


def reference_outputs(
    checkpoint: Checkpoint, config: VisionConfig, images: list[np.ndarray]
) -> list[Outputs]:
    """Every block's output and the final tokens (B, N, D) in float32, for each image (1, H, W, 3).

    The weights are those of the source, by way of no other network.
    """
    weights = _weights(checkpoint)
    if config.family == "aimv1":
        return [aimv1_outputs(config, weights, pixels) for pixels in images]
    import torch

    model = _model(config, weights)
    outputs: list[Outputs] = []
    for i, layer in enumerate(model.encoder.layers):
        layer.register_forward_hook(_keep(outputs, f"block {i}"))
    with torch.inference_mode():
        for pixels in images:
            outputs.append({})
            nchw = torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))
            outputs[-1]["final tokens"] = model(pixel_values=nchw).last_hidden_state.numpy()
    return outputs


def weights_are_direct(checkpoint: Checkpoint) -> bool:
    """Whether the reference gets the source's tensors under their own names, mapped by nothing."""
    return checkpoint.layout == _layout_of(checkpoint).name


def _layout_of(checkpoint: Checkpoint) -> Layout:
    """The layout in which the reference takes its tensors."""
    first = checkpoint.vision.family == "aimv1"
    return layout_named(
        "ml-aim-torch" if first else "transformers", family=checkpoint.vision.family
    )


def _weights(checkpoint: Checkpoint) -> dict[str, Any]:
    """The encoder's tensors under the reference's names, as torch float32.

    A source in that layout is read as it is, so that a fault in the layout table shows as a
    difference; of others, our tensors are mapped to these names by the table's inverse.
    """
    import torch

    pairs = _direct(checkpoint) if weights_are_direct(checkpoint) else _mapped(checkpoint)
    return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in pairs}


def _direct(checkpoint: Checkpoint) -> Iterator[tuple[str, np.ndarray]]:
    for file in checkpoint.files:
        with TensorReader(file) as reader:
            for name, info in file.tensors.items():
                if (inside := _inside(name, checkpoint.kind, _THEIR_TOWER)) is None:
                    continue
                array = reader.read(name)
                if info.dtype == "BF16":  # the upper half of a float32
                    array = (array.astype(np.uint32) << 16).view(np.float32)
                yield inside, array.astype(np.float32)


def _mapped(checkpoint: Checkpoint) -> Iterator[tuple[str, np.ndarray]]:
    theirs = _layout_of(checkpoint)
    for step in checkpoint.steps():
        inside = _inside(step.ours, checkpoint.kind, OUR_TOWER)
        if inside is not None:
            array = np.array(load_one(checkpoint, step, mx.float32))
            yield from from_ours(theirs, inside, array).items()


def _inside(name: str, kind: str, tower: tuple[str, str]) -> str | None:
    """A tensor's name within the vision encoder, None if it belongs to something else."""
    if kind == "vision":
        return name
    prefix, head = tower
    return name[len(prefix) :] if name.startswith(prefix) and not name.startswith(head) else None


def _model(config: VisionConfig, weights: dict[str, Any]) -> Any:
    """transformers' encoder with exactly these weights, in float32."""
    import torch
    from transformers import Aimv2VisionConfig, Aimv2VisionModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    theirs = Aimv2VisionConfig(
        hidden_size=config.embed_dim,
        intermediate_size=config.mlp_hidden_dim,
        num_hidden_layers=config.num_blocks,
        num_attention_heads=config.num_heads,
        patch_size=config.patch_size,
        image_size=config.image_size or 224,
        rms_norm_eps=config.rms_norm_eps,
        is_native=config.image_size is None,
        use_head=False,
    )
    loaded: Any = Aimv2VisionModel.from_pretrained(
        None,
        config=theirs,
        state_dict=weights,
        dtype=torch.float32,
        attn_implementation="eager",  # the plain formula
        output_loading_info=True,
    )
    model, info = loaded
    if wrong := [name for names in info.values() for name in names]:
        raise CheckpointError(
            f"transformers does not take these weights as they are: {show(str(wrong[0]))}"
        )
    return model.eval()


def _keep(outputs: list[Outputs], name: str):
    def hook(_module: object, _inputs: object, output: Any) -> None:
        tensor = output[0] if isinstance(output, tuple) else output
        outputs[-1][name] = tensor.numpy().copy()

    return hook
