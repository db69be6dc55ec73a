"""Pictures of similarity maps."""

import numpy as np

from aim_mlx.config import PreprocessConfig
from aim_mlx.words.heatmap import heat_picture

CONFIG = PreprocessConfig.hub(None)


def normalised(photo: np.ndarray) -> np.ndarray:
    return (photo / 255 - np.array(CONFIG.mean)) / np.array(CONFIG.std)


def test_the_most_similar_place_is_brightest_and_the_photo_shows_through():
    photo = np.full((56, 112, 3), 128, np.uint8)
    photo[:28] = 160
    heat = np.zeros((4, 8))
    heat[1, 6] = 0.3
    picture = np.asarray(heat_picture(normalised(photo), heat, CONFIG)).astype(int)
    assert picture.shape == (448, 896, 3)
    bright = picture.sum(axis=2)
    row, column = np.unravel_index(bright.argmax(), bright.shape)
    assert (row // 112, column // 112) == (1, 6)
    difference = bright[:200, :400].mean() - bright[-200:, :400].mean()
    np.testing.assert_allclose(difference, 0.45 * 32 * 3, rtol=0.1)


def test_a_map_of_one_value_has_one_colour():
    photo = np.full((448, 448, 3), 128, np.uint8)
    picture = np.asarray(heat_picture(normalised(photo), np.full((32, 32), 0.1), CONFIG))
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) == 1
