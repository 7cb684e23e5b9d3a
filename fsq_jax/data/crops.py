"""Where a random crop of an image lies: boxes (top, left, height, width)."""

import math

import numpy as np

from fsq_jax.runtime.user_error import UserError

Box = tuple[int, int, int, int]

_ATTEMPTS = 100  # TensorFlow's default; a box that still breaks its bounds becomes the whole image


def draw_crop(
    height: int,
    width: int,
    rng: np.random.Generator,
    area: tuple[float, float],
    aspect: tuple[float, float],
) -> Box:
    """Top, left, height and width of a random crop whose area is uniform (this project's own).

    The area is uniform over `area` (fractions of the image's own), the ratio of width to height
    log-uniform over `aspect`, both within what fits: where no crop of the largest area has such a
    ratio, the largest area is lowered to what does. Nothing drawn is ever rejected.
    """
    low, high = aspect
    shape = width / height
    # A crop of ratio r has at most r / shape of the area, or shape / r where r is the larger.
    largest = min(area[1], high / shape, shape / low)
    fraction = rng.uniform(min(area[0], largest), largest)
    # A crop of ratio r is sqrt(fraction * r / shape) of the width: r may not exceed these.
    lowest, highest = max(low, fraction * shape), min(high, shape / fraction)
    ratio = math.exp(rng.uniform(math.log(lowest), math.log(max(lowest, highest))))
    crop_width = min(width, max(1, round(width * math.sqrt(fraction * ratio / shape))))
    crop_height = min(height, max(1, round(height * math.sqrt(fraction * shape / ratio))))
    top = int(rng.integers(height - crop_height + 1))
    left = int(rng.integers(width - crop_width + 1))
    return top, left, crop_height, crop_width


def distorted_bounding_box(
    height: int,
    width: int,
    rng: np.random.Generator,
    area: tuple[float, float] = (0.05, 1.0),
    aspect: tuple[float, float] = (0.75, 1.33),
) -> Box:
    """Top, left, height and width of the crop that TensorFlow's `sample_distorted_bounding_box`
    draws for an image without boxes: UViM's augmentation.

    The ratio of width to height is uniform over `aspect`, and then the *height* is uniform over
    the whole numbers that the bounds of `area` (fractions of the image's own) and the image leave.
    Small crops are therefore far more frequent than with an area that is uniform. The arithmetic
    is the kernel's: float32, halves rounded to even, a position at the far edge only where
    nothing else is left, 100 attempts and then the whole image.

    Raises UserError for bounds that aren't 0 < low <= high, or an area above 1.
    """
    if not (0 < area[0] <= area[1] <= 1 and 0 < aspect[0] <= aspect[1] and min(height, width) > 0):
        raise UserError(
            "A crop needs 0 < area[0] <= area[1] <= 1 and 0 < aspect[0] <= aspect[1], not "
            f"{area=}, {aspect=} of an image of {height} x {width}."
        )
    f32 = np.float32
    low, high = f32(aspect[0]), f32(aspect[1])
    for _ in range(_ATTEMPTS):
        ratio = f32(rng.random(dtype=np.float32) * (high - low) + low)
        size = _distorted_size(height, width, rng, f32(area[0]), f32(area[1]), ratio)
        if size:
            # The kernel draws below H - h, so that only a full side begins at its last place.
            spare = height - size[0], width - size[1]
            top, left = (int(rng.integers(room)) if room else 0 for room in spare)
            return top, left, *size
    return 0, 0, height, width


def _distorted_size(
    height: int,
    width: int,
    rng: np.random.Generator,
    low: np.float32,
    high: np.float32,
    ratio: np.float32,
) -> tuple[int, int] | None:
    """Height and width of a crop of that ratio, or None where rounding breaks the area's bounds."""
    f32 = np.float32
    smallest_area = f32(f32(low * f32(width)) * f32(height))
    largest_area = f32(f32(high * f32(width)) * f32(height))

    def width_of(crop_height):
        return int(np.rint(f32(f32(crop_height) * ratio)))

    smallest = int(np.rint(np.sqrt(smallest_area / ratio)))
    largest = int(np.rint(np.sqrt(largest_area / ratio)))
    if width_of(largest) > width:
        largest = int((width + 0.5 - 1e-7) / ratio)
        largest -= width_of(largest) > width
    largest = min(largest, height)
    crop_height = min(smallest, largest)
    if crop_height < largest:
        crop_height += int(rng.integers(largest - crop_height + 1))
    if crop_height * width_of(crop_height) < smallest_area:
        crop_height += 1
    if crop_height * width_of(crop_height) > largest_area:
        crop_height -= 1
    crop_width = width_of(crop_height)
    fits = 0 < crop_height <= height and 0 < crop_width <= width
    in_bounds = smallest_area <= crop_height * crop_width <= largest_area
    return (crop_height, crop_width) if fits and in_bounds else None
