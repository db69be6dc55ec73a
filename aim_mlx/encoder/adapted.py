"""An encoder with what fine-tuning changed: its weights with the adapters in them."""

import hashlib

from aim_mlx.backend import dtype_name, mx, tree_flatten
from aim_mlx.encoder.encoder import Encoder
from aim_mlx.errors import CheckpointError
from aim_mlx.models.adapters import merged
from aim_mlx.models.vision import VisionEncoder
from aim_mlx.weights.adapters import Adapter


def adapted(encoder: Encoder, adapter: Adapter, dtype: mx.Dtype = mx.float32) -> Encoder:
    """A float32 encoder with an adapter in its weights, which cost no more than before.

    The one given stays as it is. The digest stands for weights and adapter, and is the same on
    machines that round otherwise. Raises CheckpointError for an adapter of another encoder.
    """
    if encoder.weights_digest != adapter.weights:
        raise CheckpointError(
            f"this adapter belongs to {adapter.model!r}, and the weights of "
            f"{encoder.identity.get('model')!r} are others: use the encoder that it was trained on"
        )
    config = encoder.model.config
    weights = dict(tree_flatten(encoder.model.parameters()))
    if adapter.lora is None:
        weights |= adapter.tensors
    else:
        for name, change in merged(config, adapter.lora, adapter.tensors).items():
            weights[name] = weights[name] + change
    model = VisionEncoder(config)
    model.load_weights([(name, value.astype(dtype)) for name, value in weights.items()])
    model.eval()
    mx.eval(model.parameters())
    mx.eval(mx.random.state)  # making the layers drew numbers that were never computed
    identity = {**encoder.identity, "adapter": adapter.folder, "dtype": dtype_name(dtype)}
    result = Encoder(model, encoder.preprocessing, encoder.trained, identity)
    result.weights_digest = hashlib.sha256(
        f"{adapter.weights} {adapter.digest} {adapter.lora} {dtype}".encode()
    ).hexdigest()
    return result
