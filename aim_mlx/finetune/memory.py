"""What a step takes in memory, said before the first one, and into how many parts it is cut."""

from aim_mlx.config import VisionConfig
from aim_mlx.finetune.config import FinetuneConfig

# What the gradient of a step may take beside the weights, so that large at 224 pixels fits into 16
# GB with them. It is not the machine's own, as the parts decide the last bits of a result.
_ACTIVATIONS = 6 * 10**9
# Values of each token that a block keeps for the gradient, as multiples of its width, of the MLP's
# width and of heads times tokens: where attention alone learns, and where the MLP does too. Fitted
# to measured peaks (benchmarks/README.md, fine-tuning).
_ATTENTION, _EVERYTHING = (12, 3, 1), (18, 5, 1)


def bytes_per_image(vision: VisionConfig, config: FinetuneConfig, itemsize: int) -> int:
    """What is kept of an image for the gradient."""
    N, D, F = (vision.grid or 1) ** 2, vision.embed_dim, vision.mlp_hidden_dim

    def of_block(by_width: int, by_hidden: int, by_score: int) -> int:
        return N * (by_width * D + by_hidden * F + by_score * vision.num_heads * N)

    every = config.full or "mlp" in config.targets
    kept = of_block(*(_EVERYTHING if every else _ATTENTION))
    blocks, at_work = config.blocks(vision), of_block(*_EVERYTHING)
    if config.checkpointed:
        return (blocks * N * D + kept + at_work) * itemsize
    return (blocks * kept + at_work // 2) * itemsize


def fitting_parts(vision: VisionConfig, config: FinetuneConfig, itemsize: int) -> int:
    """The parts of a step: as asked for, else so many that each fits."""
    if config.parts:
        return min(config.parts, config.batch_size)
    at_once = max(1, _ACTIVATIONS // bytes_per_image(vision, config, itemsize))
    return -(-config.batch_size // at_once)


def step_bytes(
    vision: VisionConfig, config: FinetuneConfig, itemsize: int, weights: int, trained: int
) -> int:
    """What training takes at most, for so many weights of which some are trained.

    Those have a gradient, two moments and the best ones until now, in float32.
    """
    at_once = -(-config.batch_size // fitting_parts(vision, config, itemsize))
    copies = 4 * weights + (itemsize * weights if itemsize < 4 else 0) + 4 * 4 * trained
    return copies + at_once * bytes_per_image(vision, config, itemsize)
