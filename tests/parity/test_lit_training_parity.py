"""Steps of training against transformers, PyTorch's autograd and its AdamW, from the same weights.

Eager attention and an explicit mask, as in test_lit_parity.py.
"""

import shutil

import numpy as np
import pytest

import aim_mlx
from aim_mlx.backend import mx, tree_flatten
from aim_mlx.data.pairs import Pairs
from aim_mlx.lit_training.config import TrainConfig, learning_rate
from aim_mlx.lit_training.features import Split
from aim_mlx.lit_training.model import freeze_trunk
from aim_mlx.lit_training.trainer import LitTrainer
from aim_mlx.words.lit import LiT
from aim_mlx.words.tokenizer import TokenIds, Tokenizer
from tests.parity.test_vision_parity import noise_of
from tests.small import TOKENIZER, photo

pytestmark = pytest.mark.parity

TEXTS = ["a photo of a cat", "two dogs, on a beach!", "a house", "it's a café", "the " * 12]
TEXT = {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 2}
TEXT |= {"num_attention_heads": 3, "vocab_size": 1385, "max_position_embeddings": 77}
TEXT |= {"eos_token_id": 1384}
VISION = {"hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 2}
VISION |= {"num_attention_heads": 2, "image_size": 56, "use_head": True}
CONFIG = TrainConfig(epochs=4, batch_size=5, learning_rate=1e-3, warmup=0.0, weight_decay=0.3)


def is_trunk(name: str) -> bool:
    return name.startswith("vision_model.") and ".head." not in name


@pytest.fixture(scope="module")
def reference():
    """A small transformers model with noise everywhere, its image trunk frozen."""
    import torch
    from transformers import Aimv2Config, Aimv2Model

    config = Aimv2Config(text_config=TEXT, vision_config=VISION, projection_dim=96)
    model = Aimv2Model(config).train()
    model.set_attn_implementation("eager")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(*noise_of(name, tuple(parameter.shape), 2), generator=generator)
        model.logit_scale.fill_(2.0)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not is_trunk(name))
    return model


def as_lit(model, folder) -> LiT:
    model.save_pretrained(folder)
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(TOKENIZER / name, folder)
    loaded = aim_mlx.load(folder)
    assert isinstance(loaded, LiT)
    return loaded


class Given:
    """Tokens in float32, where a cache would have rounded them."""

    def __init__(self, tokens: np.ndarray):
        self.tokens = tokens
        self.shape = (tokens.shape[1], tokens.shape[2])

    def batch(self, indices) -> list[np.ndarray]:
        return list(self.tokens[np.asarray(indices)])


def our_trainer(lit: LiT, pixels: np.ndarray, texts: TokenIds) -> LitTrainer:
    tokens = np.array(lit.features(pixels).tokens)
    count = len(texts.ids)
    pairs = Pairs(("",) * count, (), tuple(TEXTS), np.arange(count))
    freeze_trunk(lit.lit)
    assert lit.tokenizer is not None
    return LitTrainer(lit.lit, lit.tokenizer, CONFIG, Split(pairs, Given(tokens), texts))


def their_steps(model, pixels: np.ndarray, texts: TokenIds):
    """The losses, and the gradients of the first step by name."""
    import torch

    pulled = [p for n, p in model.named_parameters() if p.requires_grad and _is_matrix(n, p)]
    free = [p for n, p in model.named_parameters() if p.requires_grad and not _is_matrix(n, p)]
    groups = [{"params": pulled, "weight_decay": CONFIG.weight_decay}]
    groups += [{"params": free, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), eps=1e-8)
    ids = torch.from_numpy(texts.ids.astype(np.int64))
    mask = torch.arange(ids.shape[1]) < torch.from_numpy(texts.lengths)[:, None]
    nchw = torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))
    losses, first = [], {}
    for step in range(CONFIG.epochs):
        logits = model(pixel_values=nchw, input_ids=ids, attention_mask=mask).logits_per_image
        right = torch.arange(len(ids))
        crossed = torch.nn.functional.cross_entropy
        loss = (crossed(logits, right) + crossed(logits.T, right)) / 2
        optimizer.zero_grad()
        loss.backward()
        losses.append(loss.item())
        trained = [p for p in model.parameters() if p.requires_grad]
        if not first:
            first = {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}
        torch.nn.utils.clip_grad_norm_(trained, CONFIG.clip_norm)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(CONFIG, step, CONFIG.epochs)
        optimizer.step()
    return losses, first


def _is_matrix(name: str, parameter) -> bool:
    """Linear products and token embeddings, by shape; positions and query have more or other."""
    return parameter.ndim == 2 and "position" not in name


def test_gradients_and_losses_over_steps_equal_pytorchs(reference, tmp_path):
    import torch

    tokenizer = Tokenizer.load(TOKENIZER)
    assert tokenizer is not None
    texts = tokenizer.encode(TEXTS)
    lit = as_lit(reference, tmp_path / "lit")
    pixels = lit.preprocess([photo(seed) for seed in range(len(TEXTS))])
    trainer = our_trainer(lit, pixels, texts)
    left_out = (np.zeros((len(TEXTS), len(TEXTS)), bool),) * 2
    streams = [mx.default_stream(mx.default_device())]
    tokens = mx.array(np.stack(trainer.train.tokens.batch(range(len(TEXTS)))))
    _, gradient = trainer._loss_and_gradient(tokens, texts.ids, left_out, streams)
    ours = dict(tree_flatten(gradient))
    losses = [trainer.update()["loss"] for _ in range(CONFIG.epochs)]
    their_losses, theirs = their_steps(reference, pixels, texts)

    # Their gradients, put in place of the weights, go through the loader that knows both names.
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            if name in theirs:
                parameter.copy_(theirs[name])
    named = dict(tree_flatten(as_lit(reference, tmp_path / "gradients").lit.parameters()))
    assert len(ours) == len(theirs) - 2 * 2  # of each text block, q, k and v are one tensor here
    for name, value in ours.items():
        expected = np.array(named[name])
        scale = np.abs(expected).max()
        assert scale > 0, name
        difference = np.abs(np.array(value) - expected).max() / scale
        assert difference <= 3e-5, f"{name}: {difference:.2e}"
    # Four steps of AdamW, clipped and with decay; the loss falls from 1.9 to 0.25. Seen 1.6e-5.
    np.testing.assert_allclose(losses, their_losses, atol=1e-4)
    assert losses[-1] < 0.2 * losses[0]
