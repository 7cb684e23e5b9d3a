"""Image files to uint8 RGB arrays [H,W,3], or one clear error that names the record."""

import io
import struct

import cv2
import numpy as np
import PIL.Image
import PIL.ImageOps

from fsq_jax.runtime.user_error import UserError

MAX_PIXELS = 1 << 27  # of a picture: a file of kilobytes can say that it has many more
EXTENSIONS = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
_JPEG_START, _JPEG_END, _PNG_START = b"\xff\xd8", b"\xff\xd9", b"\x89PNG"
_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# Formats whose pixels may have more than 8 bits, and which OpenCV scales to all of 16.
_DEEP_STARTS = (*_TIFF_STARTS, b"P5", b"P6", b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51")
_PNG_DEPTH = 24  # where a PNG's header says its bits
# What 16 bits hold without ever getting so bright is depth, or the data of a sensor of 12 bits.
_LEAST_OF_GREYS, _LEAST_OF_COLOURS = 2**14, 2**12

cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # a damaged file is our error


class RecordError(UserError):
    """A record that is damaged, or lacks what is asked of it; its message is for the user."""


class UnreadError(RecordError):
    """A record whose file isn't as it was, or can't be read now: that may pass, damage doesn't."""


def decode_image(encoded: bytes, where: str, *, upright: bool = True) -> np.ndarray:
    """The picture in an image file's bytes, uint8 [H,W,3] RGB: grey is repeated, alpha dropped.

    16 bits are scaled to 8 (65535 becomes 255), and floats in [0, 1] are, too. What has other
    numbers in it is no picture but a measurement, such as depth in millimetres, and is refused:
    floats outside of [0, 1], integers of 32 bits, and 16 bits that stay far below 65535.

    OpenCV decodes what is whole, Pillow the rest: OpenCV fills up a file that was cut off and says
    nothing.

    Args:
      encoded: the file.
      where: what the message of an error begins with.
      upright: turns a photograph as its camera was held (EXIF). TensorFlow's decoder doesn't, nor
        may a picture that has labels for its pixels turn without them. (A TIFF is always turned.)

    Raises:
      RecordError: where neither can read it, or it is no picture.
    """
    _check_pixels(encoded, where)
    if _is_whole(encoded):
        flags = cv2.IMREAD_COLOR | (cv2.IMREAD_ANYDEPTH if _may_be_deep(encoded) else 0)
        if not upright:
            flags |= cv2.IMREAD_IGNORE_ORIENTATION
        image = _by_opencv(encoded, flags)
        if image is not None:
            return to_8_bits(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), where)
    try:
        with PIL.Image.open(io.BytesIO(encoded)) as image:
            image = PIL.ImageOps.exif_transpose(image) if upright else image
            deep = image.mode in ("I", "F") or image.mode.startswith("I;16")
            image = np.array(image if deep else image.convert("RGB"))
    except Exception as error:  # Pillow's plugins raise anything on damaged bytes
        reason = "unknown format" if isinstance(error, PIL.UnidentifiedImageError) else error
        raise RecordError(
            f"{where} is not a whole, readable image ({reason}; {len(encoded)} bytes)."
        ) from error
    return to_rgb(to_8_bits(image, where), where)


def _check_pixels(encoded: bytes, where: str) -> None:
    """Raises RecordError for a file that says it has more pixels than are decoded."""
    try:
        if encoded.startswith(_PNG_START):
            width, height = struct.unpack(">II", encoded[16:24])
        else:
            with PIL.Image.open(io.BytesIO(encoded)) as image:  # which reads its header alone
                width, height = image.size
    except PIL.Image.DecompressionBombError as error:
        raise RecordError(f"{where} has more than {MAX_PIXELS} pixels ({error}).") from None
    except Exception:  # Pillow's plugins raise anything; `decode_image` then says what is wrong
        return
    if width * height > MAX_PIXELS:
        raise RecordError(f"{where} has {width} x {height} pixels; expected {MAX_PIXELS} at most.")


def _by_opencv(encoded: bytes, flags: int) -> np.ndarray | None:
    try:
        return cv2.imdecode(np.frombuffer(encoded, np.uint8), flags)
    except cv2.error:  # such as for more pixels than it takes
        return None


def _may_be_deep(encoded: bytes) -> bool:
    """Whether a file's pixels may have more than 8 bits."""
    if encoded.startswith(_PNG_START):
        return encoded[_PNG_DEPTH : _PNG_DEPTH + 1] == b"\x10"
    return encoded.startswith(_DEEP_STARTS)


def _is_whole(encoded: bytes) -> bool:
    """False when the file is empty or has no end mark where its format wants one."""
    if encoded.startswith(_JPEG_START):
        return encoded[-64:].rstrip(b"\0").endswith(_JPEG_END)
    if encoded.startswith(_PNG_START):
        return b"IEND" in encoded[-16:]
    return len(encoded) > 0


def to_rgb(image: np.ndarray | bytes, where: str, *, upright: bool = True) -> np.ndarray:
    """uint8 [H,W,3] from bytes (see `decode_image`) or from a decoded image of 1 to 4 channels (16
    bits are scaled, alpha is dropped)."""
    if isinstance(image, bytes):
        return decode_image(image, where, upright=upright)
    shaped = image.ndim == 2 or (image.ndim == 3 and 1 <= image.shape[2] <= 4)
    if image.dtype not in (np.uint8, np.uint16) or not shaped:
        raise RecordError(
            f"{where} has an image of shape {image.shape}, {image.dtype}; expected uint8 [H,W,3]."
        )
    image = to_8_bits(image, where).reshape(*image.shape[:2], -1)
    return image[..., :3] if image.shape[2] >= 3 else np.repeat(image[..., :1], 3, axis=2)


def to_8_bits(pixels: np.ndarray, where: str) -> np.ndarray:
    """Pixels [H,W,...] as uint8: 65535 of uint16 and 1.0 of floats become 255.

    Raises RecordError for other types and ranges, and for 16 bits that stay far below 65535.
    """
    if pixels.dtype == np.uint8:
        return pixels
    found = f"{where} has pixels of {pixels.dtype}"
    if pixels.size and pixels.dtype.kind in "iuf":
        found += f" from {pixels.min():.6g} to {pixels.max():.6g}"
    if pixels.dtype == np.uint16:
        if not 0 < pixels.max(initial=0) < _least_of_16_bits(pixels):
            return ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
        raise RecordError(f"{found}, no picture: one of 16 bits goes up to 65535.")
    if pixels.dtype.kind == "f" and pixels.size and pixels.min() >= 0 and pixels.max() <= 1:
        return np.rint(pixels.astype(np.float32) * 255).astype(np.uint8)
    raise RecordError(f"{found}; expected uint8, uint16 up to 65535, or floats in [0, 1].")


def _least_of_16_bits(pixels: np.ndarray) -> int:
    """How bright a picture of 16 bits gets at least: one that doesn't holds measurements."""
    coloured = pixels.ndim == 3 and pixels.shape[2] >= 3
    coloured = coloured and (pixels[..., :1] != pixels[..., 1:3]).any()
    return _LEAST_OF_COLOURS if coloured else _LEAST_OF_GREYS
