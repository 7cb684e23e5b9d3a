"""Image files to uint8 RGB arrays [H,W,3], or one clear error that names the record."""

import io
import pathlib

import cv2
import numpy as np
import PIL.Image
import PIL.ImageOps

from fsq_jax.runtime.user_error import UserError

EXTENSIONS = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
_JPEG_START, _JPEG_END, _PNG_START = b"\xff\xd8", b"\xff\xd9", b"\x89PNG"


class RecordError(UserError):
    """A record that is damaged, or lacks what is asked of it; its message is for the user."""


def decode_image(encoded: bytes, where: str) -> np.ndarray:
    """The picture in an image file's bytes, uint8 [H,W,3] RGB: grey is repeated, alpha dropped, 16
    bits become 8, the orientation of the camera applied.

    OpenCV decodes what is whole, Pillow the rest: OpenCV fills up a file that was cut off and says
    nothing. Raises RecordError, which begins with `where`, when neither can read it.
    """
    if _is_whole(encoded):
        image = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR)
        if image is not None:
            return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    try:
        with PIL.Image.open(io.BytesIO(encoded)) as image:
            return np.array(PIL.ImageOps.exif_transpose(image).convert("RGB"))
    except Exception as error:
        reason = "unknown format" if isinstance(error, PIL.UnidentifiedImageError) else error
        raise RecordError(
            f"{where} is not a whole, readable image ({reason}; {len(encoded)} bytes)."
        ) from error


def _is_whole(encoded: bytes) -> bool:
    """False when the file is empty or has no end mark where its format wants one."""
    if encoded.startswith(_JPEG_START):
        return encoded[-64:].rstrip(b"\0").endswith(_JPEG_END)
    if encoded.startswith(_PNG_START):
        return b"IEND" in encoded[-16:]
    return len(encoded) > 0


def to_rgb(image: np.ndarray | bytes, where: str) -> np.ndarray:
    """uint8 [H,W,3] from bytes or from a decoded image of 1 to 4 channels (alpha is dropped)."""
    if isinstance(image, bytes):
        return decode_image(image, where)
    shaped = image.ndim == 2 or (image.ndim == 3 and 1 <= image.shape[2] <= 4)
    if image.dtype != np.uint8 or not shaped:
        raise RecordError(
            f"{where} has an image of shape {image.shape}, {image.dtype}; expected uint8 [H,W,3]."
        )
    image = image.reshape(*image.shape[:2], -1)
    return image[..., :3] if image.shape[2] >= 3 else np.repeat(image[..., :1], 3, axis=2)


def list_images(folder: pathlib.Path) -> list[str]:
    """Relative paths ("cat/1.png") of the images under a folder, sorted; hidden ones left out."""
    paths = (path.relative_to(folder) for path in folder.rglob("*"))
    return sorted(
        path.as_posix()
        for path in paths
        if path.suffix.lower() in EXTENSIONS and not any(p.startswith(".") for p in path.parts)
    )
