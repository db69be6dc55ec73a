"""A LiT model and its tokenizer against transformers, live, with noise in every tensor.

The reference runs with eager attention and an explicit mask: with its default attention and no
padding its text tower is not causal, and its numbers are others. Tolerances as for the vision
encoder, whose test says why.
"""

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest

import aim_mlx
from aim_mlx.words.lit import LiT
from aim_mlx.words.tokenizer import Tokenizer
from aim_mlx.words.zeroshot import ZeroShotHead
from tests.parity.test_vision_parity import assert_close, noise_of
from tests.small import TOKENIZER, photo
from tests.test_words_tokenizer import CAPITALS

pytestmark = pytest.mark.parity

TEXTS = ["a photo of a cat", "two dogs, on a beach!", "", "it's a café", "the " * 40]
# The text tower in its full size but for the vocabulary, which is that of the small tokenizer.
TEXT = {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12}
TEXT |= {"num_attention_heads": 6, "vocab_size": 1385, "max_position_embeddings": 77}
TEXT |= {"eos_token_id": 1384}
VISION = {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 3}
VISION |= {"num_attention_heads": 2, "image_size": 56, "use_head": True}


@pytest.fixture(scope="module")
def reference():
    import torch
    from transformers import Aimv2Config, Aimv2Model

    config = Aimv2Config(text_config=TEXT, vision_config=VISION, projection_dim=512)
    model = Aimv2Model(config).eval()
    model.set_attn_implementation("eager")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            mean, deviation = noise_of(name, tuple(parameter.shape), 12 if "text" in name else 3)
            if "token_embedding" in name:
                mean, deviation = 0.0, 1.0
            parameter.normal_(mean, deviation, generator=generator)
        model.logit_scale.fill_(3.0)
    return model


@pytest.fixture(scope="module")
def lit(reference, tmp_path_factory) -> LiT:
    folder = tmp_path_factory.mktemp("parity") / "lit"
    reference.save_pretrained(folder)
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(TOKENIZER / name, folder)
    loaded = aim_mlx.load(folder)
    assert isinstance(loaded, LiT)
    shutil.rmtree(folder)  # pytest keeps the folders of several runs
    return loaded


@pytest.fixture(scope="module")
def clip():
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(str(TOKENIZER))


def their_ids(clip, texts: list[str]):
    return clip(texts, padding=True, truncation=True, max_length=77, return_tensors="pt")


def their_outputs(reference, clip, pixels: np.ndarray) -> dict[str, np.ndarray]:
    import torch

    nchw = torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))
    with torch.inference_mode():
        out = reference(pixel_values=nchw, **their_ids(clip, TEXTS))
    names = ("image_embeds", "text_embeds", "logits_per_image")
    return {name: getattr(out, name).numpy() for name in names}


@pytest.mark.parametrize("text", CAPITALS)
def test_special_tokens_in_capitals_get_the_ids_of_transformers(lit, clip, text):
    assert lit.tokenizer.encode([text]).ids[0].tolist() == clip(text)["input_ids"]
    assert clip(text)["input_ids"] == CAPITALS[text]


def unit(vectors) -> np.ndarray:
    vectors = np.array(vectors)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.filterwarnings("ignore::aim_mlx.errors.TruncatedTextWarning")
def test_images_words_and_logits_equal_transformers(reference, lit, clip):
    pixels = lit.preprocess([photo(seed) for seed in range(3)])
    theirs = their_outputs(reference, clip, pixels)
    # Vectors of length one have elements near 1 / sqrt(512): scaled up, the tolerance holds.
    for name, ours in (
        ("image_embeds", lit.encode_image(pixels)),
        ("text_embeds", lit.encode_text(TEXTS)),
    ):
        assert_close(name, unit(ours) * 512**0.5, theirs[name] * 512**0.5)
    difference = np.abs(np.array(lit.logits(pixels, TEXTS)) - theirs["logits_per_image"])
    assert difference.max() < 1e-4 * np.exp(3.0), difference.max()


def test_prompts_that_share_their_beginning_equal_transformers(reference, lit, clip):
    import torch

    texts = [f"a photo of a {word} {i}" for word in ("cat", "red house") for i in range(80)]
    ours = np.array(lit.encode_text(texts))
    with torch.inference_mode():
        inputs = their_ids(clip, texts)
        pooled = reference.text_model(**inputs).pooler_output
        theirs = reference.text_projection(pooled).numpy()
    size = theirs.std()
    assert_close("projected", ours / size, theirs / size)


def test_zero_shot_probabilities_equal_those_of_transformers(reference, lit, clip):
    import torch

    labels, images = ["cat", "two dogs", "a house"], [photo(seed) for seed in range(3)]
    pixels = torch.from_numpy(lit.preprocess(images).transpose(0, 3, 1, 2).copy())
    inputs = their_ids(clip, [f"a photo of a {label}." for label in labels])
    with torch.inference_mode():
        logits = reference(pixel_values=pixels, **inputs).logits_per_image
    expected = logits.softmax(dim=-1).numpy()
    np.testing.assert_allclose(lit.classify(images, labels), expected, atol=1e-5)
    head = ZeroShotHead.build(lit, labels)
    np.testing.assert_allclose(head.scores(lit.embed(images)), expected, atol=1e-5)


def random_texts(count: int) -> list[str]:
    """Texts of letters, marks, blanks and controls from all over Unicode."""
    rng = random.Random(0)
    blocks = [(32, 127), (0, 160), (160, 0x250), (0x300, 0x370), (0x370, 0x600), (0x1E00, 0x2100)]
    blocks += [(0x2000, 0x2070), (0x3000, 0x3100), (0x4E00, 0x4F00), (0xAC00, 0xAD00)]
    blocks += [(0xFB00, 0xFB07), (0x1F300, 0x1F650), (0x1D400, 0x1D500)]

    def text() -> str:
        length = rng.randrange(1, 30)
        low, high = rng.choice(blocks)
        return "".join(
            chr(rng.choice([rng.randrange(low, high), 32, 39, 115])) for _ in range(length)
        )

    return [text() for _ in range(count)]


def test_random_texts_get_the_ids_of_transformers_tokenizer(clip):
    tokenizer = Tokenizer.load(TOKENIZER)
    assert tokenizer is not None
    texts = random_texts(3000)
    ours = tokenizer.encode(texts)
    for text, row, length in zip(texts, ours.ids, ours.lengths, strict=True):
        theirs = clip(text, truncation=True, max_length=77)["input_ids"]
        assert row[:length].tolist() == theirs, ascii(text)


def test_a_learned_tokenizer_serves_transformers_too(tmp_path: Path):
    from transformers import CLIPTokenizer

    captions = ["a red circle above a blue square", "it's 2 dogs!"] * 3
    learned = Tokenizer.train(captions, 560)
    values = json.loads(learned.files()["tokenizer.json"])
    (tmp_path / "vocab.json").write_text(json.dumps(values["model"]["vocab"]))
    merges = "\n".join(" ".join(pair) for pair in values["model"]["merges"])
    (tmp_path / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
    theirs = CLIPTokenizer.from_pretrained(str(tmp_path))
    for text in [*captions[:2], "Ünseen wörds"]:
        assert learned.encode([text]).ids[0].tolist() == theirs(text)["input_ids"]
