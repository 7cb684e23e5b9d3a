"""Images are read block by block as they are, and what is no image is refused in one sentence."""

import numpy as np
import pytest
from PIL import Image

from fsq_jax.scoring import image_sets


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (7, 4, 6, 3), np.uint8)


def saved(folder, array, name="arr_0", compressed=False) -> str:
    (np.savez_compressed if compressed else np.savez)(folder / "x.npz", **{name: array})
    return str(folder / "x.npz")


def read(path, rows=3) -> np.ndarray:
    return np.concatenate(list(image_sets.open_images(path).blocks(rows)))


@pytest.mark.parametrize("compressed", [False, True])
def test_arrays_come_in_blocks(images, tmp_path, compressed):
    path = saved(tmp_path, images, compressed=compressed)
    found = image_sets.open_images(path)
    assert (found.num_images, found.height, found.width, found.channels) == (7, 4, 6, "rgb")
    assert [len(block) for block in found.blocks(3)] == [3, 3, 1]
    np.testing.assert_array_equal(read(path), images)


def test_folders_are_read_at_any_depth(images, tmp_path):
    (tmp_path / "a").mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / ("a" if i < 3 else "") / f"{i}.png")
    found = read(str(tmp_path))
    order = [3, 4, 5, 6, 0, 1, 2]
    np.testing.assert_array_equal(found, images[order])


def test_floats_are_rounded_and_grey_is_repeated(images, tmp_path):
    path = saved(tmp_path, images.astype(np.float32) / 255)
    np.testing.assert_array_equal(read(path), images)
    for grey in (images[..., 0], images[..., :1]):
        path = saved(tmp_path, grey)
        assert image_sets.open_images(path).channels == "grey, repeated"
        np.testing.assert_array_equal(read(path), images[..., :1].repeat(3, axis=3))


@pytest.mark.parametrize(
    "array, message",
    [
        (np.full((2, 4, 4, 3), 255.0), "are floats from 255 to 255; floats must be in"),
        (np.full((2, 4, 4, 3), -0.1), "are floats from -0.1 to -0.1"),
        (np.full((2, 4, 4, 3), np.nan), "have NaN or infinity"),
        (np.zeros((2, 4, 4, 4), np.uint8), r"arr_0 is uint8 of shape \(2, 4, 4, 4\); images are"),
        (np.zeros((2, 4, 4, 3), int), "arr_0 is int64 of shape"),
        (np.zeros((0, 4, 4, 3), np.uint8), "holds no image"),
        (np.array([{}, 1], object), "arr_0 is object of shape"),
    ],
)
def test_arrays_that_are_no_images(array, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        read(saved(tmp_path, array))


def test_files_that_are_no_images(images, tmp_path):
    with pytest.raises(ValueError, match="There is no file or folder"):
        read(str(tmp_path / "none"))
    with pytest.raises(ValueError, match="holds no images"):
        read(str(tmp_path))
    with pytest.raises(ValueError, match=r"no array arr_0 of images, only \['mu'\]"):
        read(saved(tmp_path, images, "mu"))
    path = saved(tmp_path, images)
    data = open(path, "rb").read()
    (tmp_path / "cut.npz").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match="neither a folder nor a whole .npz"):
        read(str(tmp_path / "cut.npz"))
    for i in (4, 5):
        Image.fromarray(images[0, :, :i]).save(tmp_path / f"{i}.png")
    with pytest.raises(ValueError, match=r"5.png is of 4 x 5 pixels and other images of .* 4 x 4"):
        read(str(tmp_path))
