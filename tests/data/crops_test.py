"""Crops are drawn as the reference draws them: TensorFlow's bounding boxes, and ADM's square."""

import numpy as np
import pytest
from PIL import Image

from fsq_jax.data import transforms
from fsq_jax.data.adm_crop import adm_crop
from fsq_jax.data.crops import distorted_bounding_box


def boxes(height, width, count, **bounds):
    rng = np.random.default_rng(0)
    return np.array([distorted_bounding_box(height, width, rng, **bounds) for _ in range(count)])


@pytest.mark.parametrize(
    "height, width, mean, below_a_fifth",
    [
        (480, 640, 0.343, 0.34),
        (427, 640, 0.310, 0.37),
        (500, 500, 0.377, 0.31),
    ],
)
def test_areas_are_those_of_tensorflows_kernel(height, width, mean, below_a_fifth):
    """Means over 20,000 draws of `sample_distorted_bounding_box`, area 0.05 to 1, 0.75 to 1.33."""
    area = boxes(height, width, 20_000)[:, 2:].prod(axis=1) / (height * width)
    assert area.mean() == pytest.approx(mean, abs=0.01)
    assert (area < 0.2).mean() == pytest.approx(below_a_fifth, abs=0.015)


def test_heights_are_uniform_and_no_crop_but_a_full_side_ends_at_the_edge():
    top, left, height, width = boxes(400, 900, 4_000, aspect=(1.0, 1.0)).T
    np.testing.assert_array_equal(height, width)
    # sqrt(0.05 * 360,000) = 134.2: heights are 134 (whose area is too small, hence 135) to 400.
    assert height.min() == 135 and height.max() == 400
    assert height.mean() == pytest.approx(267, abs=4)
    assert height.std() == pytest.approx(267 / 12**0.5, rel=0.03)
    full = height == 400
    assert (top[full] == 0).all() and ((top + height)[~full] < 400).all()
    assert (left + width < 900).all() and (left == 0).any()


def test_ratios_are_uniform_not_log_uniform():
    height, width = boxes(3_000, 9_000, 4_000, aspect=(0.5, 2.0), area=(0.05, 0.1))[:, 2:].T
    ratio = width / height
    assert ratio.mean() == pytest.approx(1.25, abs=0.02)  # 1.08 if it were log-uniform
    assert np.quantile(ratio, 0.25) == pytest.approx(0.875, abs=0.02)


def test_what_can_not_be_drawn_is_the_whole_image():
    assert boxes(1, 100, 3).tolist() == [[0, 0, 1, 100]] * 3
    with pytest.raises(ValueError, match=r"area=\(0.5, 0.2\)"):
        distorted_bounding_box(8, 8, np.random.default_rng(0), area=(0.5, 0.2))


def test_adm_halves_by_a_box_filter():
    """Which in Pillow is two means of two pixels, along rows first, each rounded half up."""
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3)).astype(np.uint8)
    expected = image.astype(int)
    for _ in range(2):  # 64 -> 32 -> 16
        expected = (expected[:, ::2] + expected[:, 1::2] + 1) // 2
        expected = (expected[::2] + expected[1::2] + 1) // 2
    np.testing.assert_array_equal(adm_crop(image, 16), expected[:, 4:20])


@pytest.mark.parametrize("shape", [(50, 37), (37, 50), (20, 90), (9, 11)])
def test_adm_then_resizes_by_pillows_bicubic(shape):
    """375 x 500 at 256 in small: at most one halving, then the shorter side gets the size."""
    image = np.random.default_rng(1).integers(0, 256, (*shape, 3)).astype(np.uint8)
    picture = Image.fromarray(image)
    if min(shape) >= 32:
        picture = picture.resize((shape[1] // 2, shape[0] // 2), Image.Resampling.BOX)
    scale = 16 / min(picture.size)
    size = [round(side * scale) for side in picture.size]
    pixels = np.asarray(picture.resize(size, Image.Resampling.BICUBIC))
    top, left = (pixels.shape[0] - 16) // 2, (pixels.shape[1] - 16) // 2
    np.testing.assert_array_equal(adm_crop(image, 16), pixels[top : top + 16, left : left + 16])


def test_the_transform_adm_is_that_crop_and_maps_stay_with_it():
    rows, columns = np.mgrid[:40, :60]
    record = {
        "image": np.stack([rows * 4, columns * 4, rows], axis=-1).astype(np.uint8),
        "depth": (rows * 100 + columns).astype(np.float32),
        "label": 0,
    }
    out = transforms.evaluation(16, "adm")(record, None)
    np.testing.assert_allclose(out["image"] * 255, adm_crop(record["image"], 16), atol=1e-4)
    found = np.stack([out["depth"] // 100, out["depth"] % 100], axis=-1)
    assert np.abs(found * 4 - out["image"][..., :2] * 255).max() < 8  # two pixels
    square, adm = (
        transforms.augment(16, 0.5, (0.8, 1.25), kind=kind)(record, np.random.default_rng(3))
        for kind in ("square", "adm")
    )
    np.testing.assert_array_equal(square["image"], adm["image"])  # in training there is no ADM
