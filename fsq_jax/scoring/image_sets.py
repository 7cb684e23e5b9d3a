"""Images to be measured, from an .npz or a folder, as uint8 blocks: read as they come, never all.

Legend: B images of a block, N in all, H W height, width.
"""

import dataclasses
import math
import os
import pathlib
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from fsq_jax.data import decode
from fsq_jax.data.image_files import list_images
from fsq_jax.formats import numpy_file
from fsq_jax.formats.archive import Archive
from fsq_jax.runtime.user_error import UserError

_MAX_PIXELS = 1 << 28  # of one image
_THREADS = 16  # that decode files; OpenCV lets go of Python's lock


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """A set of RGB images of one size; `blocks` reads them.

    Attributes:
      path: of the file or folder.
      num_images, height, width: of the set.
      channels: "rgb", or "grey, repeated" for arrays of one channel.
      files: of a folder; () for an .npz.
    """

    path: str
    num_images: int
    height: int
    width: int
    channels: str
    files: tuple[str, ...] = ()

    def blocks(self, rows: int) -> Iterator[np.ndarray]:
        """uint8 [B,H,W,3], `rows` at a time; the last one may be smaller.

        Raises:
          UserError: for an image that can't be read, is of another size, or, of floats, isn't
            finite or isn't in [0, 1].
        """
        return self._decoded(rows) if self.files else self._streamed(rows)

    def _decoded(self, rows: int) -> Iterator[np.ndarray]:
        with ThreadPoolExecutor(_THREADS) as pool:
            for start in range(0, self.num_images, rows):
                yield np.stack(list(pool.map(self._decode, self.files[start : start + rows])))

    def _decode(self, file: str) -> np.ndarray:
        path = os.path.join(self.path, file)
        image = decode.decode_image(pathlib.Path(path).read_bytes(), path)
        if image.shape[:2] != (self.height, self.width):
            raise UserError(
                f"{path} is of {image.shape[0]} x {image.shape[1]} pixels and other images of "
                f"{self.path} of {self.height} x {self.width}; measure images of one size."
            )
        return image

    def _streamed(self, rows: int) -> Iterator[np.ndarray]:
        with Archive(self.path) as archive, archive.open("arr_0.npy") as member:
            header = _header(member, self.path)
            if header.fortran:
                yield from self._transposed(member, header, rows)
                return
            row = header.num_bytes // self.num_images
            if row * min(rows, self.num_images) > archive.limit:
                archive.check_sum(["arr_0.npy"])  # which refuses it
            for start in range(0, self.num_images, rows):
                count = min(rows, self.num_images - start)
                block = np.frombuffer(member.read(count * row), header.dtype)
                block = block.reshape(count, *header.shape[1:])
                yield _to_uint8(_to_rgb(block), self._where(start))

    def _transposed(self, member, header, rows: int) -> Iterator[np.ndarray]:
        """Blocks of an array in Fortran's order, whose images lie all over the file."""
        array = numpy_file.read_data(member, header)
        for start in range(0, self.num_images, rows):
            block = np.ascontiguousarray(array[start : start + rows])
            yield _to_uint8(_to_rgb(block), self._where(start))

    def _where(self, start: int) -> str:
        return f"{self.path}, images {start} and on,"


def open_images(path: str) -> ImageSet:
    """The images of an .npz (`arr_0`, as ADM's samples have it) or of a folder, at any depth.

    An array is uint8, or float in [0, 1], of shape [N,H,W,3], [N,H,W,1] or [N,H,W]; the channel of
    grey ones is repeated, as it is for grey files.

    Raises:
      UserError: where there are none, or not of such a kind.
    """
    if os.path.isdir(path):
        files = list_images(path)
        if not files:
            raise UserError(f"{path} holds no images ({' '.join(decode.EXTENSIONS)}).")
        first = os.path.join(path, files[0])
        height, width, _ = decode.decode_image(pathlib.Path(first).read_bytes(), first).shape
        return ImageSet(path, len(files), height, width, "rgb", tuple(files))
    if not os.path.exists(path):
        raise UserError(f"There is no file or folder {path!r}.")
    try:
        with Archive(path, "an .npz file") as archive:
            return _in_archive(path, archive)
    except UserError as error:
        if os.path.isfile(path) and not zipfile.is_zipfile(path):
            raise UserError(f"{path} is neither a folder nor a whole .npz file.") from None
        raise error


def _in_archive(path: str, archive: Archive) -> ImageSet:
    if "arr_0.npy" not in archive.names:
        names = [name.removesuffix(".npy") for name in archive.names[:20]]
        raise UserError(f"{path} has no array arr_0 of images, only {names}.")
    with archive.open("arr_0.npy") as member:
        header = _header(member, path)
    shape = header.shape
    if header.fortran:
        archive.check_sum(["arr_0.npy"])  # which is read at once
    grey = len(shape) == 3 or shape[3] == 1
    return ImageSet(path, shape[0], shape[1], shape[2], "grey, repeated" if grey else "rgb")


def _header(member, path: str) -> numpy_file.Header:
    """Shape and type of the array whose data come next in an archive's member."""
    header = numpy_file.read_header(member, f"{path}: arr_0")
    shape, dtype = header.shape, header.dtype
    fits = len(shape) == 3 or (len(shape) == 4 and shape[3] in (1, 3))
    if not fits or not (dtype == np.uint8 or dtype.kind == "f"):
        raise UserError(
            f"{path}: arr_0 is {dtype} of shape {shape}; images are uint8, or floats in [0, 1], of "
            "shape [N,H,W,3], [N,H,W,1] or [N,H,W]."
        )
    if not all(shape):
        raise UserError(f"{path}: arr_0 is of shape {shape}, which holds no image.")
    if header.num_bytes != member.remaining or math.prod(shape[1:3]) > _MAX_PIXELS:
        raise UserError(
            f"{path}: arr_0 says {dtype} of shape {shape}, {header.num_bytes} bytes, and has "
            f"{member.remaining}."
        )
    return header


def _to_rgb(block: np.ndarray) -> np.ndarray:
    block = block.reshape(*block.shape[:3], -1)
    return np.broadcast_to(block, (*block.shape[:3], 3))


def _to_uint8(block: np.ndarray, where: str) -> np.ndarray:
    """Floats in [0, 1] rounded to 8 bits, as a file would hold them."""
    if block.dtype == np.uint8:
        return block
    if not np.isfinite(block).all():
        raise UserError(f"{where} have NaN or infinity.")
    low, high = block.min(), block.max()
    if low < 0 or high > 1:
        raise UserError(
            f"{where} are floats from {low:.4g} to {high:.4g}; floats must be in [0, 1], and "
            "images from 0 to 255 must be uint8."
        )
    return (block * 255 + 0.5).astype(np.uint8)
