"""What a pre-trained network makes by itself: captions, and the rest of an image."""

import numpy as np

from aim_mlx.backend import mx
from aim_mlx.errors import UsageError
from aim_mlx.models.decoder import CachedTrunk, PretrainingModel

# How much a generated patch's brightness and contrast hold to those of the patches beside it,
# against the seam: where a border is flat, the seam alone says nothing of the contrast.
_HOLD = 0.3


def captions(
    model: PretrainingModel, pixels: mx.array, longest: int, temperature: float = 0.0, seed: int = 0
) -> list[list[int]]:
    """The tokens that follow images (B, H, W, 3), up to the end token, which is left out.

    The likeliest each time, or with a temperature above 0 drawn by their probabilities. Raises
    UsageError for a length, temperature or seed that cannot be.
    """
    text = model.config.decoder
    if not 1 <= longest <= text.context_length or not 0 <= temperature < 100:
        raise UsageError(
            f"expected 1 to {text.context_length} tokens and a temperature from 0 to 100, got "
            f"{longest} and {temperature}"
        )
    if not 0 <= seed < 2**63:
        raise UsageError(f"expected a seed from 0 to {2**63 - 1}, got {seed}")
    B, decoder, key = len(pixels), model.decoder, mx.random.key(seed)
    trunk = CachedTrunk(decoder.trunk)
    image = model.connector(model.encoder(pixels).tokens)
    trunk(image, _causal(image.shape[1]))
    hidden = trunk(decoder.embed(mx.zeros((B, 0), mx.int32)))
    found: list[list[int]] = [[] for _ in range(B)]
    going = set(range(B))
    for place in range(longest):
        logits = decoder.text_head(hidden[:, -1]).astype(mx.float32)
        if temperature:
            key, now = mx.random.split(key)
            ids = mx.random.categorical(logits / temperature, key=now)
        else:
            ids = logits.argmax(axis=-1)
        tokens = np.array(ids)
        going -= {row for row in going if tokens[row] == text.eos_token_id}
        for row in going:
            found[row].append(int(tokens[row]))
        if not going or place + 1 == longest:
            break
        hidden = trunk(decoder.embed_one(ids, place))
    return found


def continued(model: PretrainingModel, pixels: np.ndarray, prefix: int) -> np.ndarray:
    """One image (H, W, 3), normalised, of which only the first `prefix` patches are looked at.

    The network gives the others one by one, each with its own mean and variance taken out; those
    are chosen here so that the patch fits the ones to its left and above. Raises UsageError for a
    prefix that leaves no patch, or has none.
    """
    config = model.config
    patch = config.vision.patch_size
    h, w = pixels.shape[0] // patch, pixels.shape[1] // patch
    if not 1 <= prefix < h * w:
        raise UsageError(f"expected to keep 1 to {h * w - 1} patches, got {prefix}")
    canvas = np.zeros_like(pixels)
    for i in range(prefix):
        canvas[_place(i, w, patch)] = pixels[_place(i, w, patch)]
    encoder = CachedTrunk(model.encoder.trunk)
    decoder = CachedTrunk(model.decoder.trunk)
    new, mask = slice(0, prefix), _causal(prefix)
    for i in range(prefix, h * w):
        tokens = model.encoder.preprocessor(mx.array(canvas[None]), (h, w))[:, new]
        hidden = decoder(model.connector(encoder(tokens)), mask)
        predicted = np.array(model.decoder.pixel_head(hidden[0, -1]).astype(mx.float32))
        canvas[_place(i, w, patch)] = _fitted(predicted.reshape(patch, patch, 3), canvas, i, w)
        new, mask = slice(i, i + 1), None
    return canvas


def predicted_patches(predictions: np.ndarray, pixels: np.ndarray, prefix: int) -> np.ndarray:
    """One image (H, W, 3) with the patches outside the prefix as predicted from those before them.

    Predictions (N, 3 p^2) of the network, output i for patch i + 1; brightness and contrast of each
    patch are the image's own, as the network does not predict them.
    """
    patch = int((predictions.shape[1] / 3) ** 0.5)
    w = pixels.shape[1] // patch
    shown = pixels.copy()
    for i in range(prefix, len(predictions)):
        place = _place(i, w, patch)
        true = pixels[place]
        guess = predictions[i - 1].reshape(patch, patch, 3)
        shown[place] = guess * true.std(ddof=1) + true.mean()
    return shown


def _causal(count: int) -> mx.array:
    return mx.tri(count, dtype=mx.float32) > 0


def _place(i: int, w: int, patch: int) -> tuple[slice, slice]:
    """Where patch i of an image w patches wide lies."""
    top, left = i // w * patch, i % w * patch
    return slice(top, top + patch), slice(left, left + patch)


def _fitted(guess: np.ndarray, canvas: np.ndarray, i: int, w: int) -> np.ndarray:
    """A patch scaled and shifted, by least squares, to go on from those to its left and above."""
    patch = len(guess)
    ours, theirs, beside = [], [], []
    if i % w:
        left = canvas[_place(i - 1, w, patch)]
        ours, theirs, beside = [*ours, guess[:, 0]], [*theirs, left[:, -1]], [*beside, left]
    if i >= w:
        above = canvas[_place(i - w, w, patch)]
        ours, theirs, beside = [*ours, guess[0]], [*theirs, above[-1]], [*beside, above]
    x, y, near = np.concatenate(ours), np.concatenate(theirs), np.concatenate(beside)
    rows = np.stack([x.ravel(), np.ones(x.size)], axis=1)
    hold = _HOLD * x.size
    wanted = rows.T @ y.ravel() + hold * np.array([near.std(), near.mean()])
    scale, shift = np.linalg.solve(rows.T @ rows + hold * np.eye(2), wanted)
    return guess * max(scale, 0.0) + shift
