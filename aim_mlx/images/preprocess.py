"""Upright RGB to normalised pixels, bit for bit as the checkpoint's own code with Pillow does it.

Resize the shortest edge (bicubic), cut the centre, scale to [0, 1], normalise; or, as multimodal
models do, squash or pad the whole image to a square. Native resolution keeps the image's own size
where the planner finds it in range.

The bits are those of Pillow 13. Earlier versions resize images taller than 2:1 in the other order,
width before height (python-pillow/Pillow pull request 9549), up to a few steps of 255 apart.
"""

import math

import numpy as np
from PIL import Image

from aim_mlx.config import PreprocessConfig
from aim_mlx.errors import ImageError, UsageError
from aim_mlx.images.decode import from_array


def plan_native(
    height: int,
    width: int,
    patch_size: int = 14,
    min_patches: int = 112,
    max_patches: int = 4096,
) -> tuple[int, int]:
    """The (height, width) in pixels, multiples of `patch_size`, that an image is brought to.

    An image whose whole patches number min_patches to max_patches keeps its scale and loses the
    ragged right and bottom edge: 480 x 640 -> 476 x 630, 34 x 45 patches. Any other is scaled to
    the nearer end of the range, with the aspect ratio as near as whole patches allow.
    Raises UsageError for sizes below 1 and a range without room for every shape.
    """
    if min(height, width, patch_size, min_patches) < 1 or max_patches < 2 * min_patches:
        raise UsageError(
            "expected sizes of at least 1 and max_patches of at least twice min_patches, got "
            f"height {height}, width {width}, patch_size {patch_size}, "
            f"patches {min_patches} to {max_patches}"
        )
    rows, columns = height // patch_size, width // patch_size
    if min_patches <= rows * columns <= max_patches:
        return rows * patch_size, columns * patch_size
    goal = min_patches if rows * columns < min_patches else max_patches
    rows, columns = _nearest_grid(height / width, goal, min_patches, max_patches)
    return rows * patch_size, columns * patch_size


def _nearest_grid(aspect: float, goal: int, smallest: int, largest: int) -> tuple[int, int]:
    """The whole (rows, columns) about sqrt(goal * aspect) by sqrt(goal / aspect), in the range."""
    candidates = []
    for rows in _around(math.sqrt(goal * aspect), largest):
        for columns in _around(rows / aspect, largest):
            # Never empty: with largest >= 2 smallest, every side has a whole other side in range.
            candidates.append((rows, min(max(columns, -(-smallest // rows)), largest // rows)))
    for columns in _around(math.sqrt(goal / aspect), largest):
        for rows in _around(columns * aspect, largest):
            candidates.append(
                (min(max(rows, -(-smallest // columns)), largest // columns), columns)
            )
    return min(candidates, key=lambda grid: (abs(math.log(grid[0] / grid[1] / aspect)), grid))


def _around(side: float, largest: int) -> tuple[int, int]:
    low, high = math.floor(side), math.ceil(side)
    return min(max(low, 1), largest), min(max(high, 1), largest)


# Pixels of the whole resized image up to which it is made before the centre is cut, as the
# reference does; a panorama beyond them (64 MB in Pillow) has only its centre resized.
_LARGEST_WHOLE = 1 << 24


def preprocess(image: Image.Image | np.ndarray, config: PreprocessConfig) -> np.ndarray:
    """PIL image of mode RGB or uint8 (H,W,3) -> float32 (H',W',3), normalised, C-contiguous.

    H' and W' are `crop_size`, or for native resolution multiples of `patch_size`.
    Raises ImageError for another mode, dtype or shape.
    """
    if isinstance(image, np.ndarray):
        image = from_array(image)
    if image.mode != "RGB":
        raise ImageError("unsupported_mode", f"expected mode RGB, got {image.mode}")
    if config.shortest_edge is None or config.crop_size is None:
        image = _native(image, config.patch_size)
    elif config.fit == "squash":
        image = image.resize((config.crop_size, config.crop_size), Image.Resampling.BICUBIC)
    elif config.fit == "pad":
        return _padded(image, config.crop_size, config)
    else:
        image = _resize_and_crop(
            image, config.shortest_edge, config.crop_size, config.crop_rounding
        )
    return _normalise(np.asarray(image), config)


def _resize_and_crop(
    image: Image.Image, shortest_edge: int, crop: int, rounding: str
) -> Image.Image:
    """The centre crop of the image resized so that its shorter edge is `shortest_edge`."""
    short, long = sorted(image.size)
    resized_long = int(shortest_edge * long / short)
    landscape = image.width >= image.height
    size = (resized_long, shortest_edge) if landscape else (shortest_edge, resized_long)
    # Python's round takes a half to the even neighbour, as torchvision's crop does.
    round_half = math.floor if rounding == "floor" else round
    left, top = round_half((size[0] - crop) / 2), round_half((size[1] - crop) / 2)
    window = (left, top, left + crop, top + crop)
    if size[0] * size[1] > _LARGEST_WHOLE:
        return _resize_window(image, size, window)
    return image.resize(size, Image.Resampling.BICUBIC).crop(window)


def _resize_window(
    image: Image.Image, size: tuple[int, int], window: tuple[int, int, int, int]
) -> Image.Image:
    """What resize(size).crop(window) gives, up to rounding, without making the whole."""
    edges = [w * image.size[i % 2] / size[i % 2] for i, w in enumerate(window)]
    # Pillow's box is of single precision: near the origin of a smaller image it is exact enough.
    # Bicubic reads two pixels either side, times the factor when it reduces.
    margin = [2 + int(2 * max(1, image.size[i] / size[i])) for i in (0, 1)]
    left, top = (max(0, int(edges[i]) - margin[i]) for i in (0, 1))
    right, bottom = (min(image.size[i], int(edges[i + 2]) + 1 + margin[i]) for i in (0, 1))
    part = image.crop((left, top, right, bottom))
    box = (edges[0] - left, edges[1] - top, edges[2] - left, edges[3] - top)
    extent = (window[2] - window[0], window[3] - window[1])
    return part.resize(extent, Image.Resampling.BICUBIC, box=box)


def _padded(image: Image.Image, side: int, config: PreprocessConfig) -> np.ndarray:
    """The image with its longer edge at `side`, normalised, in the middle of zeros.

    Source: AIDC-AI/Ovis, `preprocess_image`, which rounds the other edge down.
    """
    width, height = image.size
    scaled = (side, int(height / width * side))
    if width <= height:
        scaled = (int(width / height * side), side)
    size = (max(1, scaled[0]), max(1, scaled[1]))
    left, top = (side - size[0]) // 2, (side - size[1]) // 2
    square = np.zeros((side, side, 3), np.float32)
    square[top : top + size[1], left : left + size[0]] = _normalise(
        np.asarray(image.resize(size, Image.Resampling.BICUBIC)), config
    )
    return square


def _native(image: Image.Image, patch_size: int) -> Image.Image:
    """The ragged edge cut off where the planner keeps the scale, else resized as a whole."""
    height, width = plan_native(image.height, image.width, patch_size)
    if (height, width) == tuple(n // patch_size * patch_size for n in (image.height, image.width)):
        return image.crop((0, 0, width, height))
    return image.resize((width, height), Image.Resampling.BICUBIC)


def _normalise(pixels: np.ndarray, config: PreprocessConfig) -> np.ndarray:
    """uint8 (H,W,3) -> float32 (H,W,3): (x / 255 - mean) / std."""
    height, width, _ = pixels.shape
    # In rows of 3 W: numpy is several times slower at broadcasting along an axis of three.
    mean, std = (np.tile(np.array(v, np.float32), width) for v in (config.mean, config.std))
    # Divided, not multiplied by 1 / 255: this is the float32 that the reference rounds to.
    values = np.divide(pixels.reshape(height, width * 3), np.float32(255), dtype=np.float32)
    values -= mean
    values /= std
    return values.reshape(height, width, 3)
