"""Many small images as one picture."""

import math

import numpy as np


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
