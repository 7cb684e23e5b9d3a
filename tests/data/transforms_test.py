"""Crops stay inside, maps move with their image, sizes and ranges are what was asked for."""

import pickle

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from fsq_jax.data import token_cache, transforms


def _coordinates(height, width):
    """An image that says where each pixel came from, and maps that say the same."""
    rows, columns = np.mgrid[:height, :width]
    image = np.stack([rows, columns, rows * 0], axis=-1).astype(np.uint8)
    return {
        "image": image,
        "depth": (rows * 1000 + columns).astype(np.float32),
        "segments": np.stack([rows, columns], axis=-1).astype(np.int32),
        "label": 3,
    }


@hypothesis.given(
    height=st.integers(1, 300),
    width=st.integers(1, 300),
    low=st.floats(0.05, 1.0),
    aspect=st.tuples(st.floats(0.3, 1.0), st.floats(1.0, 3.0)),
    seed=st.integers(0, 1000),
)
@hypothesis.settings(max_examples=200, deadline=None)
def test_a_crop_never_leaves_the_image(height, width, low, aspect, seed):
    rng = np.random.default_rng(seed)
    for draw in (transforms.draw_crop, transforms.distorted_bounding_box):
        top, left, h, w = draw(height, width, rng, (low, 1.0), aspect)
        assert 0 <= top and 0 <= left and h >= 1 and w >= 1
        assert top + h <= height and left + w <= width


def test_crops_have_the_areas_and_aspects_asked_for():
    rng = np.random.default_rng(0)
    bounds = dict(area=(0.3, 0.9), aspect=(3 / 4, 4 / 3))
    boxes = np.array([transforms.draw_crop(400, 500, rng, **bounds) for _ in range(500)])
    area = boxes[:, 2] * boxes[:, 3] / (400 * 500)
    ratio = boxes[:, 3] / boxes[:, 2]
    assert 0.29 < area.min() < 0.35 and 0.85 < area.max() < 0.91
    assert 0.74 < ratio.min() < 0.85 and 1.25 < ratio.max() < 1.34


def test_full_area_of_a_square_is_the_image_itself():
    record = _coordinates(16, 16)
    out = transforms.augment(16, 1.0, (1.0, 1.0), flip=False)(record, np.random.default_rng(0))
    np.testing.assert_allclose(out["image"] * 255, record["image"], atol=1e-4)


def test_maps_are_cropped_and_flipped_with_the_image():
    record = _coordinates(40, 60)
    flips = set()
    for seed in range(10):
        out = transforms.augment(20, 0.3, (0.8, 1.2))(record, np.random.default_rng(seed))
        pixels = out["image"] * 255
        np.testing.assert_array_equal(
            out["depth"], out["segments"][..., 0] * 1000 + out["segments"][..., 1]
        )
        assert np.abs(pixels[..., :2] - out["segments"]).max() <= 2.5
        flips.add(bool(out["segments"][0, 0, 1] > out["segments"][0, -1, 1]))
        assert out["label"] == 3
    assert flips == {True, False}


def test_evaluation_takes_the_largest_square_in_the_middle():
    out = transforms.evaluation(10)(_coordinates(10, 30), None)
    np.testing.assert_array_equal(out["segments"][..., 1], np.tile(np.arange(10, 20), (10, 1)))
    assert out["image"].dtype == np.float32 and out["image"].max() <= 1


def test_shrinking_averages_and_growing_keeps_a_constant():
    checker = np.indices((32, 32)).sum(axis=0) % 2 * 200
    image = np.repeat(checker[..., None], 3, axis=2).astype(np.uint8)
    assert (transforms.resize_image(image, 8, 8) == 100).all()
    flat = np.full((5, 40, 3), 77, np.uint8)
    assert (transforms.resize_image(flat, 16, 16) == 77).all()


def test_nearest_takes_the_value_under_the_centre():
    values = np.arange(6)[None].repeat(3, axis=0)
    np.testing.assert_array_equal(transforms.resize_nearest(values, 1, 2), [[1, 4]])
    np.testing.assert_array_equal(
        transforms.resize_nearest(values, 3, 12)[0], np.arange(6).repeat(2)
    )


def test_value_range_and_inputs_left_alone():
    record = _coordinates(8, 8)
    before = record["image"].copy()
    record["image"][0, 0] = before[0, 0] = (0, 255, 51)
    out = transforms.value_range(-1.0, 1.0)(record, None)["image"]
    np.testing.assert_allclose(out[0, 0], [-1, 1, -0.6], atol=1e-6)
    np.testing.assert_array_equal(record["image"], before)


def bilinear_by_loops(image, height, width):
    """Each pixel blends the four around its centre; edges are repeated."""
    rows = (np.arange(height) + 0.5) * image.shape[0] / height - 0.5
    columns = (np.arange(width) + 0.5) * image.shape[1] / width - 0.5
    y, x = np.floor(rows).astype(int), np.floor(columns).astype(int)
    dy, dx = (rows - y)[:, None, None], (columns - x)[None, :, None]

    def at(y, x):
        y, x = y.clip(0, image.shape[0] - 1), x.clip(0, image.shape[1] - 1)
        return image[y[:, None], x].astype(np.float64)

    top = at(y, x) * (1 - dx) + at(y, x + 1) * dx
    bottom = at(y + 1, x) * (1 - dx) + at(y + 1, x + 1) * dx
    return top * (1 - dy) + bottom * dy


@pytest.mark.parametrize("height, width", [(7, 5), (31, 60), (12, 20)])
def test_bilinear_has_half_pixel_centres_and_no_antialiasing(height, width):
    image = np.random.default_rng(0).integers(0, 256, (12, 20, 3)).astype(np.uint8)
    out = transforms.resize_bilinear(image, height, width)
    assert out.dtype == np.uint8 and out.shape == (height, width, 3)
    # OpenCV has weights of 11 bits.
    assert np.abs(out - bilinear_by_loops(image, height, width)).max() < 1


@pytest.mark.parametrize("side", [4, 7, 24, 18])
def test_area_means_are_those_of_a_common_multiple(side):
    """Of pixels cut so small that both sizes are whole numbers of them."""
    image = np.random.default_rng(0).integers(0, 256, (12, 12, 3)).astype(np.uint8)
    fine = image.repeat(side, axis=0).repeat(side, axis=1).astype(np.float64)
    expected = fine.reshape(side, 12, side, 12, 3).mean(axis=(1, 3))
    out = transforms.resize_area(image, side, side)
    assert out.dtype == np.uint8 and np.abs(out - expected).max() < 0.5001
    if side < 12:
        assert np.abs(out - transforms.resize_image(image, side, side).astype(int)).max() <= 1


def test_coltran_crops_the_middle_and_keeps_pixels_apart():
    record = _coordinates(10, 30)
    out = transforms.coltran(20)(record, None)
    np.testing.assert_array_equal(out["image"][..., 1], out["image"][:1, :, 1].repeat(20, 0))
    np.testing.assert_allclose(out["image"][0, :, 1] * 255, np.arange(10, 20).repeat(2), atol=1e-4)


def test_uvim_squashes_where_nothing_is_cropped():
    record = _coordinates(10, 30)
    plain = transforms.evaluation(10, "uvim")(record, None)
    np.testing.assert_array_equal(plain["depth"][:, 3], np.arange(10) * 1000 + 10)
    np.testing.assert_allclose(
        plain["image"] * 255, transforms.resize_bilinear(record["image"], 10, 10), atol=1e-4
    )
    uncropped = transforms.augment(10, 1.0, (0.75, 1.33), flip=False, kind="uvim")
    for name, value in uncropped(record, np.random.default_rng(0)).items():
        np.testing.assert_array_equal(value, plain[name])


def test_uvim_numbers_the_segments_that_a_crop_has_left():
    segments = np.zeros((40, 60, 2), np.int32)
    segments[:, ::10] = [3, 0]
    segments[5:30, 2:9], segments[15:, 45:] = [1, 8], [2, 5]
    record = {"image": np.zeros((40, 60, 3), np.uint8), "segments": segments, "label": 0}
    numbers = set()
    for seed in range(20):
        augment = transforms.augment(32, 0.05, (0.75, 1.33), kind="uvim")
        out = augment(record, np.random.default_rng(seed))
        present = np.unique(out["segments"].reshape(-1, 2), axis=0)
        present = present[present[:, 0] > 0]
        assert sorted(present[:, 1]) == list(range(1, len(present) + 1))
        numbers.add(len(present))
    assert {1, 2, 3} <= numbers


def test_crop_to_a_box():
    crop = transforms.crop_to((54, 480, 41, 601))
    out = crop(_coordinates(480, 640))
    assert out["image"].shape == (426, 560, 3)
    assert out["segments"][0, 0].tolist() == [54, 41]
    assert out["segments"][-1, -1].tolist() == [479, 600]
    with pytest.raises(ValueError, match=r"\(54, 480, 41, 601\) leaves an image of 480 x 600"):
        crop(_coordinates(480, 600))


def test_views():
    record = {"tokens_VL": np.arange(6).reshape(3, 2), "label": 1}
    rng = np.random.default_rng(0)
    seen = {tuple(token_cache.sample_token_view(record, rng)["tokens"]) for _ in range(30)}
    assert seen == {(0, 1), (2, 3), (4, 5)}


def test_transforms_pickle_and_refuse_impossible_crops():
    pickle.loads(pickle.dumps(transforms.augment(8, 0.5)))
    with pytest.raises(ValueError, match="min_area=0"):
        transforms.augment(8, 0)
    with pytest.raises(ValueError, match=r"aspect=\(2, 1\)"):
        transforms.augment(8, 0.5, (2, 1))
    known = "'uvin' is no kind of transform; there are square, adm, uvim"
    with pytest.raises(ValueError, match=known):
        transforms.evaluation(8, "uvin")
