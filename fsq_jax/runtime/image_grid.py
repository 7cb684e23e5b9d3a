"""Many small images as one picture."""

import math
import os

import numpy as np
from PIL import Image

from fsq_jax.runtime.files import written_whole


def image_grid(images_NHWC: np.ndarray, columns: int = 8) -> np.ndarray:
    """One uint8 picture [rows*(H+2)+2, columns*(W+2)+2, 3] of images in [0, 1], row by row."""
    images = np.clip(np.nan_to_num(np.asarray(images_NHWC, np.float32)), 0, 1)
    num, height, width, channels = images.shape
    columns = min(columns, num)
    rows = math.ceil(num / columns)
    canvas = np.ones((rows * (height + 2) + 2, columns * (width + 2) + 2, channels), np.float32)
    for i, image in enumerate(images):
        top, left = 2 + i // columns * (height + 2), 2 + i % columns * (width + 2)
        canvas[top : top + height, left : left + width] = image
    return (canvas * 255 + 0.5).astype(np.uint8)


def save_picture(path: str, picture: np.ndarray) -> None:
    """Writes a uint8 picture [H,W,3], whole or not at all, in the format of the path's suffix."""
    kind = Image.registered_extensions()[os.path.splitext(path)[1].lower()]
    with written_whole(path, "wb") as file:
        Image.fromarray(picture).save(file, kind)
