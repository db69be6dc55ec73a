"""An encoder with a head, of which some is trained: what, and how fast."""

import re

from aim_mlx.backend import mx, nn, tree_map
from aim_mlx.config import VisionConfig
from aim_mlx.finetune.config import FinetuneConfig
from aim_mlx.models.adapters import adapt, adapted_layers, initial_adapters
from aim_mlx.models.layers import through
from aim_mlx.models.vision import VisionEncoder
from aim_mlx.probe.heads import Head, HeadConfig

_BLOCK = re.compile(r"encoder\.trunk\.blocks\.(\d+)\.")
_MATRICES = (".weight", ".lora_a", ".lora_b")


class Classifier(nn.Module):
    """Normalised pixels (B, H, W, 3) -> logits (B, C), float32.

    A head's batch normalisation keeps the moments that it comes with.
    """

    def __init__(self, vision: VisionConfig, head: HeadConfig):
        super().__init__()
        self.encoder = VisionEncoder(vision)
        self.head = Head(head)

    def __call__(self, pixels: mx.array, checkpointed: bool = False) -> mx.array:
        p, (_, H, W, _) = self.encoder.config.patch_size, pixels.shape
        x = self.encoder.preprocessor(pixels, (H // p, W // p))
        return self.head(through(self.encoder.trunk, x, None, checkpointed))


def new_network(
    encoder: VisionEncoder, head: Head, config: FinetuneConfig, dtype: mx.Dtype = mx.float32
) -> Classifier:
    """A network as training starts it, with the weights of both; frozen ones are in `dtype`.

    Networks made of the same share what is frozen.
    """
    network = Classifier(encoder.config, head.config)
    network.encoder.update(encoder.parameters())
    network.head.update(head.parameters())
    lora = config.lora(encoder.config)
    if lora is not None:
        adapt(network.encoder, lora, initial_adapters(encoder.config, lora, config.seed))
    elif config.blocks(encoder.config) < encoder.config.num_blocks:
        network.encoder.freeze()
        network.encoder.trunk.post_trunk_norm.unfreeze()
        for block in network.encoder.trunk.blocks[-config.last_blocks :]:
            block.unfreeze()
    if dtype != mx.float32:
        network.encoder.update(tree_map(lambda v: v.astype(dtype), network.encoder.parameters()))
    network.eval()
    mx.eval(network.parameters())
    mx.eval(mx.random.state)  # making the layers drew numbers that were never computed
    return network


def draw_dropout(network: Classifier, key: mx.array | None) -> None:
    """Lets every adapter leave out what the key decides, or nothing where it is None."""
    layers = adapted_layers(network)
    keys = [None] * len(layers) if key is None else mx.random.split(key, max(1, len(layers)))
    for layer, own in zip(layers, keys, strict=False):
        layer.draw(own)


def decays(name: str) -> bool:
    """Whether weight decay pulls at a weight: not at gains, biases, queries and positions."""
    return name.endswith(_MATRICES) and "norm" not in name


def rate_share(name: str, blocks: int, layer_decay: float) -> float:
    """The part of the learning rate that a weight moves by: less, the further from the head."""
    if not name.startswith("encoder.") or "post_trunk_norm" in name:
        return 1.0
    match = _BLOCK.match(name)
    return layer_decay ** (blocks - int(match[1]) if match else blocks + 1)
