"""Samples from a trained stage II: images of given classes, or labels of given images.

python -m fsq_jax.sample --workdir=runs/maskgit --labels=3,7 --out=grid.png
python -m fsq_jax.sample --workdir=runs/maskgit --num=50000 --npz=samples.npz
python -m fsq_jax.sample --workdir=runs/maskgit --image=in.png --mask=mask.png --labels=7
python -m fsq_jax.sample --workdir=maskgit_imagenet256_checkpoint \
    --stage_1=tokenizer_imagenet256_checkpoint --labels=207,980 --out=grid.png

python -m fsq_jax.sample --workdir=runs/uvim_lm --num=8 --out=depth.png
python -m fsq_jax.sample --workdir=runs/uvim_lm --image=in.png --out=depth.png

A masked transformer draws images, or completes one. Its .npz holds `arr_0`, uint8 [N,H,W,3], as
ADM's evaluator reads it, and `arr_1`, the labels.

UViM's stages show what they make of held-out images: input, prediction and truth side by side
(stage I from the true indices), and of an image of one's own, which has no truth. Their .npz holds
"input", "prediction" and "truth", uint8 [N,H,W,3], labels as they are drawn.
"""

import dataclasses
import os
import re
from collections.abc import Sequence

import jax
import numpy as np
from absl import flags

from fsq_jax import runs
from fsq_jax.data import checks, decode
from fsq_jax.evaluators.predictor import Predictor
from fsq_jax.runs import answers
from fsq_jax.runs.answers import class_names, sample
from fsq_jax.runs.config import parse_overrides
from fsq_jax.runtime import cli, outputs, sharding
from fsq_jax.runtime.files import written_whole
from fsq_jax.runtime.image_grid import image_grid, save_picture
from fsq_jax.runtime.user_error import UserError


def parse_labels(text: str, class_names: Sequence[str]) -> np.ndarray:
    """Classes of "3,7" or of "trouser,bag"; all of them for "".

    Raises:
      UserError: for a label that the data hasn't.
    """
    labels = []
    for part in filter(None, text.split(",")):
        label = int(part) if re.fullmatch("[0-9]{1,9}", part) else -1
        if part in class_names:
            label = class_names.index(part)
        if not 0 <= label < len(class_names):
            raise UserError(
                f"Label {part!r} is neither a number below {len(class_names)} nor one of "
                f"{', '.join(class_names[:20])}."
            )
        labels.append(label)
    return np.array(labels or range(len(class_names)), np.int32)


def read_image(path: str) -> np.ndarray:
    """An image file as it is: uint8 [H,W,3]."""
    if not os.path.isfile(path):
        raise UserError(f"There is no image {path!r}.")
    with open(path, "rb") as file:
        return decode.decode_image(file.read(), path)


def known_tokens(predictor: Predictor, image_path: str, mask_path: str) -> dict[str, np.ndarray]:
    """{"tokens" [L], "known" [L]} of an image, where white pixels of the mask are to be redrawn.

    Raises UserError for a mask of another size than the image: cropped alike, it would lie
    elsewhere.
    """
    image, mask = read_image(image_path), read_image(mask_path)
    checks.check_same_size(image, mask, (image_path, mask_path))
    image, mask = (answers.as_evaluated(predictor.config, array) for array in (image, mask))
    return answers.known_tokens(predictor, image, mask.mean(-1) > 0.5)


def predicted_labels(predictor: Predictor, num: int, image_path: str = "") -> dict[str, np.ndarray]:
    """{"input", "prediction", "truth"}, pictures [N,H,W,3] in [0, 1], of a run of UViM.

    Args:
      predictor: of either stage.
      num: so many held-out images, the first ones.
      image_path: an image that takes their place, and has no truth; stage II's alone.
    """
    if not image_path:
        return answers.held_out_labels(predictor, num)
    image = answers.as_evaluated(predictor.config, read_image(image_path))
    return answers.labels_of_image(predictor, image)


def main(argv) -> None:
    del argv
    sharding.initialize_distributed()
    options = flags.FLAGS
    if not options.out and not options.npz:
        raise UserError("Nothing would be written: give --out=grid.png, --npz=FILE, or both.")
    if options.out and os.path.abspath(options.out) == os.path.abspath(options.npz or ""):
        raise UserError(f"--out and --npz are one file, {options.out!r}; give two names.")
    outputs.check_picture(options.out)
    outputs.check_file(options.npz)
    overrides = parse_overrides(options.set)
    predictor = runs.load(options.workdir, options.stage_1, options.step, overrides)
    stage = predictor.config.stage
    if stage == "maskgit_transformer":
        sample_images(predictor, options)
    elif stage in ("uvim_base", "uvim_lm"):
        sample_labels(predictor, options)
    else:
        raise UserError(
            f"{options.workdir!r} is of stage {stage!r}; samples are drawn from "
            "'maskgit_transformer', 'uvim_base' and 'uvim_lm'."
        )


def sample_images(predictor: Predictor, options) -> None:
    """Draws what the flags ask of a masked transformer, and writes it."""
    if bool(options.image) != bool(options.mask):
        raise UserError("--image and --mask go together: what to complete, and where.")
    labels = parse_labels(options.labels, class_names(predictor))
    if options.num < 0:
        raise UserError(f"--num={options.num} must be at least 0.")
    labels_N = np.resize(labels, options.num or 8 * len(labels))
    if not options.num:
        labels_N = np.sort(labels_N, kind="stable")  # a row of the grid for each class
    known = None
    if options.image:
        known = known_tokens(predictor, options.image, options.mask)
    images = sample(predictor, labels_N, options.seed, known)
    arrays = {"arr_0": images, "arr_1": labels_N}
    write(image_grid(images[:400]), arrays, options.out, options.npz)


def sample_labels(predictor: Predictor, options) -> None:
    """Predicts what the flags ask of a stage of UViM, and writes it."""
    unread = [name for name in ("labels", "mask") if getattr(options, name)]
    if unread:
        raise UserError(
            f"--{unread[0]} is for masked transformers; {predictor.config.stage} reads images."
        )
    predictor = dataclasses.replace(predictor, seed=options.seed)
    panels = predicted_labels(predictor, options.num or 8, options.image)
    triples = np.concatenate(list(panels.values()), axis=2)
    write(image_grid(triples[:400], columns=2), panels, options.out, options.npz)


def write(picture: np.ndarray, arrays: dict[str, np.ndarray], out: str, npz: str) -> None:
    """Saves the picture at `out`, and the arrays, images as uint8, at `npz`; "" for neither."""
    if jax.process_index() != 0:
        return
    shape = " x ".join(map(str, next(iter(arrays.values())).shape))
    if npz:  # before the picture, which is made of them
        with written_whole(npz, "wb") as file:
            saved = {name: _as_saved(array) for name, array in arrays.items()}
            np.savez(file, **saved)  # pyright: ignore[reportArgumentType]
        print(f"{npz}: {shape}", flush=True)
    if out:
        save_picture(out, picture)
        print(f"{out}: {shape}", flush=True)


def _as_saved(array: np.ndarray) -> np.ndarray:
    """Images in [0, 1] in 8 bits; labels as they are."""
    return (np.clip(array, 0, 1) * 255 + 0.5).astype(np.uint8) if array.ndim == 4 else array


if __name__ == "__main__":
    flags.DEFINE_string(
        "workdir", None, "Run, export or file of a masked transformer or of UViM.", required=True
    )
    flags.DEFINE_string("stage_1", "", "Stage I that a stage II reads; a run names its own.")
    flags.DEFINE_string("labels", "", "Classes, as numbers or names; all by default.")
    flags.DEFINE_integer(
        "num",
        0,
        "How many images in all, dealt out over the labels; 8 a label, 8 of UViM.",
        lower_bound=0,
    )
    flags.DEFINE_string("out", "", "Picture to write.")
    flags.DEFINE_string("npz", "", "uint8 images to write, for ADM's evaluator.")
    flags.DEFINE_string("image", "", "Image to complete, or to label.")
    flags.DEFINE_string("mask", "", "Picture whose white part is redrawn.")
    flags.DEFINE_integer("seed", 0, "Another seed, other images.")
    flags.DEFINE_integer("step", None, "Which checkpoint; the latest by default.")
    flags.DEFINE_multi_string(
        "set",
        [],
        "KEY=VALUE over the run's config, such as "
        "sampling.num_steps=16; may be given several times.",
    )
    cli.run(main)
