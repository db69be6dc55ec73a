"""What `aim-mlx doctor --self-test` expects, as transformers computes it.

`python -m tests.parity.test_self_test_parity` writes it into the package.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from aim_mlx import self_test
from aim_mlx.config import VisionConfig
from aim_mlx.weights.layouts import layout_named
from aim_mlx.weights.rules import from_ours

pytestmark = pytest.mark.parity

PHOTO = Path(__file__).parent.parent / "data" / "preprocess" / "portrait.png"
# Of the size of the numbers: float32, by another processor or release of PyTorch. An Intel Xeon
# was seen to differ by 1.5e-5 from what is stored, in the gradient of log_logit_scale, a sum.
CLOSE = 3e-5


def reference(config: Any) -> Any:
    """transformers' model of a config in float32, with the weights of the self-test."""
    import torch
    from transformers import Aimv2Config, Aimv2Model, Aimv2VisionConfig, Aimv2VisionModel

    kind = "vision" if isinstance(config, VisionConfig) else "lit"
    if isinstance(config, VisionConfig):
        model = Aimv2VisionModel(Aimv2VisionConfig(**vision_sizes(config), use_head=False))
    else:
        text = sizes(config.text) | {"vocab_size": config.text.vocab_size}
        text |= {"max_position_embeddings": config.text.context_length}
        text |= {"eos_token_id": config.text.eos_token_id}
        vision = vision_sizes(config.vision) | {"use_head": True}
        whole = Aimv2Config(
            text_config=text, vision_config=vision, projection_dim=config.projection_dim
        )
        model = Aimv2Model(whole)
    layout, tensors = layout_named("transformers", kind), {}
    for name, value in self_test.weights(config).items():
        tensors |= from_ours(layout, name, value)
    state = {name: torch.from_numpy(np.array(value)) for name, value in tensors.items()}
    lacking = model.load_state_dict(state, strict=False)
    assert not lacking.unexpected_keys
    assert all("position" in name for name in lacking.missing_keys), lacking.missing_keys
    # The text tower is causal only with eager attention and a mask.
    model.set_attn_implementation("eager")
    return model.eval()


def sizes(config: Any) -> dict[str, Any]:
    return {
        "hidden_size": config.embed_dim,
        "intermediate_size": config.mlp_hidden_dim,
        "num_hidden_layers": config.num_blocks,
        "num_attention_heads": config.num_heads,
        "rms_norm_eps": config.rms_norm_eps,
    }


def vision_sizes(config: VisionConfig) -> dict[str, Any]:
    native = {"is_native": config.native, "image_size": config.image_size or 224}
    return sizes(config) | native | {"patch_size": config.patch_size}


def nchw(pixels: np.ndarray):
    import torch

    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))


def photo_pixels(size: int) -> np.ndarray:
    """What CLIP's image processor makes of the photo: (1, size, size, 3)."""
    from PIL import Image
    from transformers import CLIPImageProcessorPil

    processor = CLIPImageProcessorPil(
        size={"shortest_edge": size}, crop_size={"height": size, "width": size}
    )
    pixels = processor(Image.open(PHOTO).convert("RGB"), return_tensors="np")["pixel_values"]
    return np.ascontiguousarray(np.asarray(pixels, np.float32).transpose(0, 2, 3, 1))


def expected() -> dict[str, np.ndarray]:
    import torch

    lit, native = reference(self_test.LIT), reference(self_test.NATIVE)
    ids = torch.from_numpy(self_test.text_ids()).long()
    end = self_test.LIT.text.eos_token_id
    mask = (torch.arange(ids.shape[1]) <= (ids == end).int().argmax(1, keepdim=True)).long()
    pixels = nchw(self_test.images())
    with torch.inference_mode():
        tokens = lit.vision_model(pixels).last_hidden_state
        anywhere = native(nchw(self_test.native_image())).last_hidden_state
        vectors = lit.visual_projection(lit.vision_model(pixels).pooler_output)
        texts = lit.text_projection(lit.text_model(ids, attention_mask=mask).pooler_output)
        photo = lit.vision_model(nchw(photo_pixels(self_test.VISION.image_size or 0)))
        photo = lit.visual_projection(photo.pooler_output)
    logits = lit(pixel_values=pixels, input_ids=ids, attention_mask=mask).logits_per_image
    (logits * torch.from_numpy(self_test.gradient_of_logits())).sum().backward()
    outputs = {
        "tokens": tokens[:, :: self_test.EVERY],
        "native tokens": anywhere[:, :: self_test.EVERY],
        "image vectors": vectors,
        "text vectors": texts,
        "logits": logits.detach(),
        "vector of the photo": torch.nn.functional.normalize(photo, dim=-1),
    }
    found = {name: np.ascontiguousarray(value.numpy()) for name, value in outputs.items()}
    found |= gradients({name: p.grad.numpy() for name, p in lit.named_parameters()})
    return found | {
        "pixels": photo_pixels(self_test.PHOTO_SIZE)[0],
        "photo": np.frombuffer(PHOTO.read_bytes(), np.uint8),
    }


def gradients(theirs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    layout = layout_named("transformers", "lit")
    found = {}
    for name, ours in self_test.weights(self_test.LIT).items():
        parts = [np.atleast_1d(theirs[source]) for source in layout.source_names(name)]
        whole = np.concatenate(parts)  # q, k and v
        if whole.ndim == 4:  # the convolution
            whole = whole.transpose(0, 2, 3, 1)
        found[name] = self_test.projected(name, whole.reshape(ours.shape))
    return found


def test_the_package_carries_what_transformers_computes():
    carried = load_file(self_test.EXPECTED)
    computed = expected()
    assert carried.keys() == computed.keys()
    for name, value in computed.items():
        size = np.sqrt((value.astype(np.float64) ** 2).mean())
        assert np.abs(carried[name] - value.astype(np.float64)).max() <= CLOSE * size, name


if __name__ == "__main__":
    save_file(expected(), self_test.EXPECTED)
