"""Every kind of file becomes uint8 RGB, and a damaged one a single clear error."""

import io

import cv2
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
    np.testing.assert_array_equal(
        decode.decode_image(encoded(RGB, "WEBP", lossless=True), "x"), RGB
    )


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


def deep_files():
    """A picture of 16 bits in every format that has them, and what it is in 8."""
    deep = RGB.astype(np.uint16) * 257
    deep[0, 0] = 65_535 - 128, 257 + 127, 65_535
    rounded = RGB.copy()
    rounded[0, 0] = 255, 1, 255
    yield "ppm", b"P6 16 12 65535\n" + deep.astype(">u2").tobytes(), rounded
    for kind in (".png", ".tiff"):
        yield kind, cv2.imencode(kind, deep[..., ::-1])[1].tobytes(), rounded


def test_16_bits_are_scaled_to_8():
    for kind, file, expected in deep_files():
        np.testing.assert_array_equal(decode.decode_image(file, kind), expected, err_msg=kind)
    grey = RGB[..., 0].astype(np.uint16) * 257
    for kind in ("TIFF", "PNG"):
        image = decode.decode_image(encoded(grey, kind), kind)
        np.testing.assert_array_equal(image, np.stack([RGB[..., 0]] * 3, -1))


def test_floats_of_a_picture_are_scaled():
    for image in (RGB, RGB[..., 0]):
        file = encoded_tiff((image / 255).astype(np.float32))
        expected = image if image.ndim == 3 else np.stack([image] * 3, -1)
        np.testing.assert_array_equal(decode.decode_image(file, "x"), expected)


def encoded_tiff(image):
    if image.ndim == 2:
        return encoded(image, "TIFF")
    return cv2.imencode(".tiff", image[..., ::-1])[1].tobytes()


@pytest.mark.parametrize("measured", [
    np.linspace(500, 9_000, 12 * 16).reshape(12, 16).astype(np.uint16),  # millimetres
    np.linspace(0.5, 9, 12 * 16).reshape(12, 16).astype(np.float32),  # metres
    np.linspace(0, 255, 12 * 16).reshape(12, 16).astype(np.int32) * 1000,
    RGB.astype(np.float32),
], ids=["uint16", "float32", "int32", "float255"])  # fmt: skip
def test_measurements_are_no_pictures(measured):
    message = r"^depth.tiff has pixels of \w+ from \S+ to \S+[,;]"
    with pytest.raises(decode.RecordError, match=message):
        decode.decode_image(encoded_tiff(measured), "depth.tiff")
    if measured.dtype == np.uint16:
        with pytest.raises(decode.RecordError, match="uint16 from 500 to 9000, no picture"):
            decode.decode_image(encoded(measured), "depth.png")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_photograph_turns_unless_its_labels_would_not(kind):
    exif = PIL.Image.Exif()
    exif[0x112] = 6  # held on its side
    file = encoded(RGB, kind, exif=exif)
    assert decode.decode_image(file, "x").shape == (16, 12, 3)
    assert decode.decode_image(file, "x", upright=False).shape == (12, 16, 3)


@pytest.mark.parametrize("kind", ["PNG", "GIF", "JPEG"])
def test_a_picture_of_kilobytes_does_not_take_gigabytes(kind, monkeypatch):
    pixels = PIL.Image.new("L", (1 << 7, 1 << 8))
    buffer = io.BytesIO()
    pixels.save(buffer, kind)
    assert decode.decode_image(buffer.getvalue(), "x").shape == (1 << 8, 1 << 7, 3)
    monkeypatch.setattr(decode, "MAX_PIXELS", (1 << 15) - 1)
    with pytest.raises(decode.RecordError, match="x has 128 x 256 pixels; expected 32767 at most"):
        decode.decode_image(buffer.getvalue(), "x")


def test_a_picture_that_says_it_has_a_trillion_pixels():
    data = bytearray(encoded(RGB))
    data[16:24] = b"\0\x0f\xff\xff" * 2
    with pytest.raises(decode.RecordError, match="x has 1048575 x 1048575 pixels"):
        decode.decode_image(bytes(data), "x")
