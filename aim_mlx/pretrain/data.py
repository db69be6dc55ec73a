"""Pictures and captions as batches, each a pure function of the seed and the step."""

from dataclasses import replace

import numpy as np

from aim_mlx.config import PreprocessConfig
from aim_mlx.data.pairs import Pairs
from aim_mlx.errors import UsageError
from aim_mlx.images import preprocess
from aim_mlx.images.augment import augmented
from aim_mlx.images.pictures import Pictures
from aim_mlx.pretrain.config import PretrainConfig
from aim_mlx.pretrain.losses import Batch, sample_prefixes
from aim_mlx.words.tokenizer import Tokenizer

_SHAPES = 8  # captions are padded to a multiple, so that few shapes occur


class PretrainingData:
    """The pictures of `pairs` with their captions; without a tokenizer these have no say."""

    def __init__(
        self,
        pairs: Pairs,
        pictures: Pictures,
        tokenizer: Tokenizer | None,
        preprocessing: PreprocessConfig,
        config: PretrainConfig,
    ):
        self.pairs, self.pictures, self.config = pairs, pictures, config
        size, patch = preprocessing.crop_size, preprocessing.patch_size
        if size is None:
            raise UsageError("pre-training needs a model of one image size, not a native one")
        self._size, self.patches = size, (size // patch) ** 2
        self.preprocessing = preprocessing
        self._as_it_is = replace(preprocessing, shortest_edge=size)
        self.tokenizer = tokenizer
        # The captions of image i are _order[_starts[i] : _starts[i + 1]].
        self._order = np.argsort(pairs.images, kind="stable")
        self._starts = np.searchsorted(
            pairs.images[self._order], np.arange(len(pairs.paths) + 1), side="left"
        )
        self.cut = 0  # captions that are cut off
        if tokenizer is not None:
            texts = tokenizer.encode(pairs.captions)
            self.cut = len(texts.cut)
            # BOS is a vector of the decoder's, so that the start token is left out.
            self._ids, self._lengths = texts.ids[:, 1:], texts.lengths - 1

    def __len__(self) -> int:
        return len(self.pairs.paths)

    @property
    def steps(self) -> int:
        """How many steps show every picture `epochs` times."""
        return -(-self.config.epochs * len(self) // self.config.batch_size)

    def count(self, step: int) -> int:
        """The images of a step."""
        return self.config.batch_size

    def batch(self, step: int, rows: slice = slice(None)) -> Batch:
        """What step 0 to steps - 1 learns from: random views, one caption of each picture.

        Of the whole batch, or of these rows of it.
        """
        seed, B = self.config.seed, self.config.batch_size
        numbers = step * B + np.arange(B)[rows]
        images = self._dealt(numbers)
        pixels, captions = [], []
        for number, image in zip(numbers, images, strict=True):
            rng = np.random.default_rng([seed, 1, int(number)])
            captions.append(self._caption(image, rng))
            view = augmented(
                self.pictures.required(self.pairs.paths[image]),
                self._size,
                rng,
                self.config.smallest_crop,
                self.config.flip,
                self.config.jitter,
            )
            pixels.append(preprocess(view, self._as_it_is))
        rng = np.random.default_rng([seed, 2, step])
        return self._batch(pixels, captions, sample_prefixes(rng, B, self.patches)[rows])

    def fixed(self, images: np.ndarray, prefixes: np.ndarray | None = None) -> Batch:
        """Whole pictures with one caption and one prefix each, the same every time."""
        pixels, captions, drawn = [], [], []
        for image in images:
            rng = np.random.default_rng([self.config.seed, 3, int(image)])
            captions.append(self._caption(image, rng))
            drawn.append(sample_prefixes(rng, 1, self.patches)[0])
            pixels.append(
                preprocess(self.pictures.required(self.pairs.paths[image]), self.preprocessing)
            )
        return self._batch(pixels, captions, np.array(drawn) if prefixes is None else prefixes)

    def sample(self, count: int) -> np.ndarray:
        """The numbers of so many pictures, the same every time, from anywhere in the table.

        Its first pictures are often of one kind.
        """
        return np.random.default_rng([self.config.seed, 4]).permutation(len(self))[:count]

    def _dealt(self, numbers: np.ndarray) -> np.ndarray:
        """The pictures of these places in the order of all epochs."""
        images = np.empty_like(numbers)
        epochs, places = np.divmod(numbers, len(self))
        for epoch in np.unique(epochs):
            order = np.random.default_rng([self.config.seed, 0, epoch]).permutation(len(self))
            here = epochs == epoch
            images[here] = order[places[here]]
        return images

    def _caption(self, image: int, rng: np.random.Generator) -> int | None:
        """One of a picture's captions by number, None where it has none."""
        start, end = self._starts[image], self._starts[image + 1]
        return int(self._order[rng.integers(start, end)]) if end > start else None

    def _batch(
        self, pixels: list[np.ndarray], captions: list[int | None], prefix: np.ndarray
    ) -> Batch:
        lengths = np.zeros(len(pixels), np.int32)
        if self.tokenizer is None:
            return Batch(np.stack(pixels), prefix, None, lengths)
        rows = [row for row, caption in enumerate(captions) if caption is not None]
        chosen = [caption for caption in captions if caption is not None]
        lengths[rows] = self._lengths[chosen]
        L = max(_SHAPES, -(-int(lengths.max()) // _SHAPES) * _SHAPES)
        L = min(L, self.tokenizer.context_length - 1)
        ids = np.full((len(pixels), L), self.tokenizer.eos_token_id, np.int32)
        width = min(L, self._ids.shape[1])
        ids[rows, :width] = self._ids[chosen, :width]
        return Batch(np.stack(pixels), prefix, ids, lengths)
