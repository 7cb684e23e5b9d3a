"""The crop with which ADM (Dhariwal & Nichol) made the ImageNet references of its suite."""

import numpy as np
from PIL import Image


def adm_crop(image: np.ndarray, size: int) -> np.ndarray:
    """The square in the middle of an image [H,W,3] at size x size, uint8, pixel for pixel as ADM's.

    The image is halved by a box filter while its shorter side is at least twice the size, then
    resized (bicubic, with antialiasing) so that the shorter side has the size, then cropped.
    Everything runs in Pillow, whose filters and rounding are part of the result.
    """
    picture = Image.fromarray(image)
    while min(picture.size) >= 2 * size:
        half = tuple(side // 2 for side in picture.size)
        picture = picture.resize(half, resample=Image.Resampling.BOX)
    width, height = scaled_size(picture.height, picture.width, size)[::-1]
    pixels = np.asarray(picture.resize((width, height), resample=Image.Resampling.BICUBIC))
    top, left = (height - size) // 2, (width - size) // 2
    return pixels[top : top + size, left : left + size]


def scaled_size(height: int, width: int, size: int) -> tuple[int, int]:
    """Height and width after a resize that gives the shorter side `size` pixels."""
    scale = size / min(height, width)
    return round(height * scale), round(width * scale)
