"""What the demo shows and what its brush means, as NumPy arrays.

N images, H W pixels, h w tokens along the sides, T decoding steps, K codes, d channels of a code.
"""

from collections.abc import Mapping, Sequence

import cv2
import jax.numpy as jnp
import numpy as np

from fsq_jax.quantizers import fsq
from fsq_jax.runtime.image_grid import image_grid
from fsq_jax.runtime.user_error import UserError
from fsq_jax.tasks import drawing

SIDE = 384  # pixels of a picture on the page, about
_GREY = 0.5
_PAINTED = 0.25  # of a token's pixels, for the brush to mean the token


def enlarged(image: np.ndarray, side: int = SIDE) -> np.ndarray:
    """An image [H,W,3], in [0, 1] or uint8, as uint8 of about `side` pixels, its pixels squares."""
    if image.dtype != np.uint8:
        image = (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)
    factor = max(1, round(side / max(image.shape[:2])))
    return image.repeat(factor, axis=0).repeat(factor, axis=1)


def colours(levels: Sequence[int], codebook_size: int) -> np.ndarray:
    """A colour [K,3] in [0, 1] for each index.

    FSQ's are the first three channels of the code as red, green and blue, so that codes that are
    near look alike; the words of a VQ (levels ()) get hues that differ.
    """
    if not levels:
        return drawing.palette(codebook_size + 1)[1:]
    codes_Kd = np.asarray(fsq.indices_to_codes(jnp.arange(codebook_size), levels))
    colours_K3 = np.full((codebook_size, 3), _GREY, np.float32)
    channels = min(3, len(levels))
    low, high = codes_Kd.min(0), codes_Kd.max(0)
    shade_Kd = (codes_Kd - low) / (high - low)
    colours_K3[:, :channels] = 0.08 + 0.84 * shade_Kd[:, :channels]
    return colours_K3


def index_of(digits: Sequence[int], levels: Sequence[int]) -> int:
    """The index of the code whose channels are at these levels, each counted from 0."""
    return int(np.ravel_multi_index(tuple(map(int, digits)), tuple(levels), order="F"))


def code_map(indices_hw: np.ndarray, colours_K3: np.ndarray) -> np.ndarray:
    """A picture of indices: a square of its colour for each, with a thin line between them."""
    picture = enlarged(colours_K3[indices_hw])
    cell = len(picture) // len(indices_hw)
    if cell >= 8:
        picture = picture.copy()
        picture[::cell] = picture[:, ::cell] = 255
    return picture


def brushed(value: Mapping | None) -> tuple[np.ndarray, np.ndarray]:
    """(picture uint8 [H,W,3], bool [H,W] where the brush was) of what an image editor holds.

    Raises:
      UserError: there is no picture in it.
    """
    if value is None or value.get("background") is None:
        raise UserError("There is no picture: upload one.")
    picture = np.asarray(value["background"])
    alpha = [np.asarray(layer)[..., 3] > 0 for layer in value.get("layers") or ()]
    mask = np.any(alpha, axis=0) if alpha else np.zeros(picture.shape[:2], bool)
    return np.ascontiguousarray(picture[..., :3]), mask


def painted_tokens(mask_HW: np.ndarray, side: int) -> np.ndarray:
    """bool [h,w]: the tokens of which the brush met a fair part; the picture is of them alone."""
    # The mean over each token's area.
    shares = cv2.resize(mask_HW.astype(np.float32), (side, side), interpolation=cv2.INTER_AREA)
    return shares >= _PAINTED


def unfinished(images: np.ndarray, again_NL: np.ndarray) -> np.ndarray:
    """Images [N,H,W,3] with grey where their tokens will be drawn again."""
    side = round(again_NL.shape[1] ** 0.5)
    again = again_NL.reshape(-1, side, side)
    again = again.repeat(images.shape[1] // side, 1).repeat(images.shape[2] // side, 2)
    return np.where(again[..., None], np.float32(_GREY), images)


def grid(images: np.ndarray, columns: int) -> np.ndarray:
    """One enlarged picture of images [N,H,W,3], row by row."""
    factor = max(1, SIDE // 2 // images.shape[1])
    return image_grid(images.repeat(factor, 1).repeat(factor, 2), columns)


def film(frames_TN: Sequence[np.ndarray], num_steps: int) -> np.ndarray:
    """The steps so far as one picture: a row for each image, a column for each of all steps."""
    shown = np.ones((len(frames_TN[0]), num_steps, *frames_TN[0].shape[1:]), np.float32)
    for step, frame in enumerate(frames_TN):
        shown[:, step] = frame
    return image_grid(shown.reshape(-1, *shown.shape[2:]), columns=num_steps)
