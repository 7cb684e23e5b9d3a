"""Every kind of file becomes uint8 RGB, and a damaged one a single clear error."""

import io

import numpy as np
import PIL.Image
import pytest

from fsq_jax.data import decode

RGB = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)


def encoded(array, kind="PNG", **options):
    stream = io.BytesIO()
    PIL.Image.fromarray(array).save(stream, kind, **options)
    return stream.getvalue()


def test_lossless_files_come_back_as_they_were():
    for kind in ("PNG", "BMP", "TIFF", "PPM"):
        np.testing.assert_array_equal(decode.decode_image(encoded(RGB, kind), "x"), RGB)
    np.testing.assert_array_equal(decode.decode_image(encoded(RGB, "WEBP", lossless=True), "x"), RGB)


def test_grey_alpha_palette_and_deep_files_become_rgb():
    grey = RGB[..., 0]
    np.testing.assert_array_equal(decode.decode_image(encoded(grey), "x"), np.stack([grey] * 3, -1))
    np.testing.assert_array_equal(decode.decode_image(encoded(np.dstack([RGB, grey])), "x"), RGB)
    deep = encoded(grey.astype(np.uint16) * 257)
    np.testing.assert_array_equal(decode.decode_image(deep, "x"), np.stack([grey] * 3, -1))
    gif = decode.decode_image(encoded(grey, "GIF"), "x")
    assert gif.shape == (12, 16, 3) and gif.dtype == np.uint8
    cmyk = io.BytesIO()
    PIL.Image.fromarray(RGB).convert("CMYK").save(cmyk, "JPEG")
    assert decode.decode_image(cmyk.getvalue(), "x").shape == (12, 16, 3)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP"])
def test_a_file_that_was_cut_off_is_an_error(kind):
    large = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    whole = encoded(large, kind)
    with pytest.raises(decode.RecordError, match=r"cat/1\.img is not a whole, readable image"):
        decode.decode_image(whole[: len(whole) // 2], "cat/1.img")


@pytest.mark.parametrize("data", [b"", b"not an image at all"])
def test_no_image_is_an_error(data):
    with pytest.raises(decode.RecordError, match="^here is not"):
        decode.decode_image(data, "here")


def test_a_whole_jpeg_with_a_tail_is_read():
    assert decode.decode_image(encoded(RGB, "JPEG") + b"trailer" * 20, "x").shape == RGB.shape


def test_arrays_to_rgb():
    for shape in ((4, 5), (4, 5, 1), (4, 5, 2), (4, 5, 3), (4, 5, 4)):
        assert decode.to_rgb(np.zeros(shape, np.uint8), "x").shape == (4, 5, 3)
    with pytest.raises(decode.RecordError, match=r"shape \(4, 5\), float32"):
        decode.to_rgb(np.zeros((4, 5), np.float32), "x")
    with pytest.raises(decode.RecordError, match=r"shape \(4, 5, 9\)"):
        decode.to_rgb(np.zeros((4, 5, 9), np.uint8), "x")
