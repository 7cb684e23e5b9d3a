"""What the demo draws, and what its brush means."""

import numpy as np
import pytest

from fsq_jax.demo import pictures
from fsq_jax.quantizers import fsq


@pytest.mark.parametrize("levels", [(8, 6, 5), (4, 3), (8, 5, 5, 5)])
def test_colours_are_the_first_channels_of_a_code(levels):
    size = fsq.codebook_size(levels)
    colours = pictures.colours(levels, size)
    assert colours.shape == (size, 3) and colours.min() >= 0 and colours.max() <= 1
    assert len(np.unique(colours, axis=0)) == np.prod(levels[:3])
    codes = np.asarray(fsq.indices_to_codes(np.arange(size), levels))
    for channel in range(min(3, len(levels))):
        assert np.corrcoef(colours[:, channel], codes[:, channel])[0, 1] > 0.9999


def test_words_of_a_vq_get_colours_of_their_own():
    colours = pictures.colours((), 240)
    assert len(np.unique(colours, axis=0)) == 240


def test_an_index_is_what_the_quantizer_makes_of_the_levels():
    levels = (8, 5, 3)
    for index in (0, 1, 8, 57, 119):
        (code,) = np.asarray(fsq.indices_to_codes(np.array([index]), levels))
        grids = [np.unique(fsq.indices_to_codes(np.arange(120), levels)[:, i]) for i in range(3)]
        digits = [np.searchsorted(grid, x) for grid, x in zip(grids, code, strict=True)]
        assert pictures.index_of(digits, levels) == index


def test_pictures_are_enlarged_by_whole_pixels():
    image = np.random.default_rng(0).random((32, 32, 3), np.float32)
    large = pictures.enlarged(image)
    assert large.shape == (384, 384, 3)
    np.testing.assert_array_equal(large[::12, ::12], np.uint8(image * 255 + 0.5))
    assert (large[:12, :12] == large[0, 0]).all()


def test_a_map_has_a_square_of_its_colour_for_each_index():
    colours = np.eye(3, dtype=np.float32)
    picture = pictures.code_map(np.array([[0, 1], [2, 0]]), colours)
    middles = picture[[96, 96, 288, 288], [96, 288, 96, 288]] // 255
    np.testing.assert_array_equal(middles, np.eye(3)[[0, 1, 2, 0]])


def test_the_brush_is_wherever_a_layer_is_not_clear():
    background = np.zeros((4, 6, 4), np.uint8)
    layers = np.zeros((2, 4, 6, 4), np.uint8)
    layers[0, 1, 2] = layers[1, 3, 5] = 9
    value = {"background": background, "layers": list(layers), "composite": background}
    picture, mask = pictures.brushed(value)
    assert picture.shape == (4, 6, 3)
    assert np.argwhere(mask).tolist() == [[1, 2], [3, 5]]
    assert not pictures.brushed(value | {"layers": []})[1].any()
    for nothing in (None, {"background": None, "layers": [], "composite": None}):
        with pytest.raises(ValueError, match="There is no picture: upload one."):
            pictures.brushed(nothing)


def test_a_token_is_painted_where_the_brush_met_a_fair_part_of_it():
    mask = np.zeros((40, 40), bool)
    mask[10:20, 10:20] = True  # one token of 4 x 4
    mask[20:30, 10:12] = True  # a fifth of the one below
    mask[0:10, 30:34] = True  # two fifths of the last of the first row
    assert np.argwhere(pictures.painted_tokens(mask, 4)).tolist() == [[0, 3], [1, 1]]


def test_what_is_drawn_again_is_grey():
    images = np.zeros((1, 4, 4, 3), np.float32)
    shown = pictures.unfinished(images, np.array([[True, False, False, False]]))
    assert (shown[0, :2, :2] == 0.5).all() and shown.sum() == 0.5 * 12


def test_a_film_has_a_place_for_each_step():
    frames = [np.zeros((3, 8, 8, 3), np.float32)] * 2
    film = pictures.film(frames, 5)
    assert film.shape == (3 * 10 + 2, 5 * 10 + 2, 3)
    assert not film[2:10, 2:10].any() and (film[2:10, 22:30] == 255).all()
