"""A LiT model around a frozen image tower: what is trained, and how it starts."""

import numpy as np

from aim_mlx.backend import mx, nn, on_gpu, tree_flatten
from aim_mlx.config import LiTConfig, TextConfig
from aim_mlx.encoder.encoder import Encoder
from aim_mlx.errors import UsageError
from aim_mlx.lit_training.config import TEXT_SIZES
from aim_mlx.models.lit import LiTModel
from aim_mlx.weights.initial import initial_weights
from aim_mlx.words.tokenizer import Tokenizer


def lit_config(encoder: Encoder, text_config: str, tokenizer: Tokenizer) -> LiTConfig:
    """The sizes of the model to train."""
    size = TEXT_SIZES[text_config]
    text = TextConfig(
        size.embed_dim,
        size.mlp_hidden_dim,
        size.num_blocks,
        size.num_heads,
        tokenizer.vocab_size,
        tokenizer.context_length,
        tokenizer.eos_token_id,
    )
    return LiTConfig(encoder.model.config, text, size.projection_dim)


def new_model(encoder: Encoder, config: LiTConfig, seed: int) -> LiTModel:
    """A model whose trunk is the encoder's own arrays, frozen, and whose rest is new.

    `trainable_parameters` are the attention pool, both projections, the text tower and the scale,
    in float32. Raises UsageError for an encoder whose weights are packed.
    """
    if any(isinstance(each, nn.QuantizedLinear) for each in encoder.model.modules()):
        raise UsageError("this model is quantised: train on the one it was made from")
    model = LiTModel(config)
    trunk = dict(tree_flatten(model.image_encoder.parameters()))
    trunk = {name for name in trunk if not name.startswith("head.")}
    frozen = dict(tree_flatten(encoder.model.parameters()))  # a LiT's own pool is left behind
    model.image_encoder.load_weights([(name, frozen[name]) for name in sorted(trunk)], strict=False)
    freeze_trunk(model)
    wanted = dict(tree_flatten(model.trainable_parameters()))
    model.load_weights(list(initial_weights(config, seed, wanted)), strict=False)
    mx.eval(model.parameters())
    # Making the layers drew random numbers that were never computed; they would pile up.
    mx.eval(mx.random.state)
    return model


def freeze_trunk(model: LiTModel) -> None:
    """Leaves all but the image tower's trunk to training."""
    model.image_encoder.freeze()
    model.image_encoder.head.unfreeze()


def decays(name: str) -> bool:
    """Whether weight decay pulls at a parameter: the matrices, no gain, bias, position or scale."""
    return name.endswith(".weight") and "norm" not in name


def trimmed(ids: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Ids (B, L) cut to the longest of these texts; on a GPU to a multiple of 8, for reuse."""
    longest = int(lengths.max())
    if on_gpu():
        longest = min(-(-longest // 8) * 8, ids.shape[1])
    return ids[:, :longest]
