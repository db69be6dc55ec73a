"""Which images and texts of a batch an image or a text is compared with."""

import numpy as np

from aim_mlx.words.tokenizer import TokenIds


class Matches:
    """What belongs together by any pair of a table: images (n,) by number, and their texts.

    Captions of the same tokens are one text, which may belong to many images.
    """

    def __init__(self, images: np.ndarray, texts: TokenIds):
        numbers: dict[bytes, int] = {}
        rows = zip(texts.ids, texts.lengths, strict=True)
        ids = (row[:length].tobytes() for row, length in rows)
        self._images = images
        self._texts = np.array([numbers.setdefault(each, len(numbers)) for each in ids])
        self._of_image = images * len(numbers)  # a pair is this and the number of its text
        self._known = np.unique(self._of_image + self._texts)

    def left_out(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What is no wrong answer, among the pairs of these rows (B,): bool (B, B), twice.

        First as texts for the image of a row, then as images for the text of a column: what belongs
        to it by another pair, and what a pair before it in the batch has already. So a text counts
        once: if it counted for each of its images, common texts would be thought unlikely.
        """
        asked = self._of_image[rows, None] + self._texts[rows]
        place = np.searchsorted(self._known, asked).clip(max=len(self._known) - 1)
        belongs = self._known[place] == asked
        texts = belongs | _repeated(self._texts[rows])
        images = belongs | _repeated(self._images[rows])[:, None]
        for each in texts, images:
            np.fill_diagonal(each, False)  # a pair's own is the right answer
        return texts, images


def _repeated(values: np.ndarray) -> np.ndarray:
    """Whether an equal one stands before: (B,) -> bool (B,)."""
    repeated = np.ones(len(values), bool)
    repeated[np.unique(values, return_index=True)[1]] = False
    return repeated
