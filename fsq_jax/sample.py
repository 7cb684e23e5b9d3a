"""Samples images of given classes from a trained masked transformer, or completes a given image.

python -m fsq_jax.sample --workdir=runs/maskgit --labels=3,7 --out=grid.png
python -m fsq_jax.sample --workdir=runs/maskgit --num=50000 --npz=samples.npz
python -m fsq_jax.sample --workdir=runs/maskgit --image=in.png --mask=mask.png --labels=7
python -m fsq_jax.sample --pretrained=maskgit_imagenet256_checkpoint \
    --tokenizer=tokenizer_imagenet256_checkpoint --labels=207,980 --out=grid.png

The .npz holds `arr_0`, uint8 [N,H,W,3], as ADM's evaluator reads it, and `arr_1`, the labels.
"""

import os
from collections.abc import Sequence

import jax
import numpy as np
import tqdm
from absl import flags
from PIL import Image

from fsq_jax import errors, imported, runs, sharding
from fsq_jax.data import images as image_files
from fsq_jax.data import transforms
from fsq_jax.evaluators.run import Run
from fsq_jax.logging import grid


def sample(run: Run, labels_N: np.ndarray, seed: int = 0, known: dict | None = None) -> np.ndarray:
    """Images [N,H,W,3] in [0, 1] of the labels, each drawn anew.

    Args:
      run: a masked transformer's run.
      labels_N: classes.
      seed: another seed, other images.
      known: {"tokens" [L], "known" [L] bool}: tokens that are given and stay (in-painting).
    """
    key, images = jax.random.key(seed), []
    rows = run.batch_size // jax.process_count()
    starts = range(0, len(labels_N), run.batch_size)
    for i, start in enumerate(tqdm.tqdm(starts, desc="sampling", disable=None)):
        first = start + jax.process_index() * rows
        # The last batch is filled up with its first label, and cut afterwards.
        index = np.arange(first, first + rows)
        batch = {"label": labels_N[np.where(index < len(labels_N), index, start)].astype(np.int32)}
        for name, value_L in (known or {}).items():
            batch[name] = np.broadcast_to(value_L, (rows, len(value_L)))
        out = run.predict["sample"](run.state, run.put(batch), jax.random.fold_in(key, i))
        images.append(sharding.to_host(out["image"]))
    return np.concatenate(images)[: len(labels_N)]


def class_names(config) -> Sequence[str]:
    """The names of a run's classes; their numbers where its data isn't here, or has others."""
    try:
        names = runs.make_source(config.data, config.data.eval_split).class_names
    except (ValueError, OSError):
        names = ()
    numbers = [str(label) for label in range(config.num_classes)]
    return names if len(names) == config.num_classes else numbers


def parse_labels(text: str, class_names: Sequence[str]) -> np.ndarray:
    """Classes of "3,7" or of "trouser,bag"; all of them for "".

    Raises:
      ValueError: for a label that the data hasn't.
    """
    labels = []
    for part in filter(None, text.split(",")):
        label = int(part) if part.isdigit() else -1
        if part in class_names:
            label = class_names.index(part)
        if not 0 <= label < len(class_names):
            raise ValueError(
                f"Label {part!r} is neither a number below {len(class_names)} nor one of "
                f"{', '.join(class_names[:20])}."
            )
        labels.append(label)
    return np.array(labels or range(len(class_names)), np.int32)


def known_tokens(run: Run, image_path: str, mask_path: str, size: int) -> dict[str, np.ndarray]:
    """{"tokens" [L], "known" [L]} of an image, where white pixels of the mask are to be redrawn.

    A token is redrawn as soon as one of its pixels is.
    """
    paths = {"image": image_path, "mask": mask_path}
    read = {}
    for name, path in paths.items():
        if not os.path.exists(path):
            raise ValueError(f"There is no {name} {path!r}.")
        with open(path, "rb") as file:
            record = {"image": image_files.decode(file.read(), path)}
        read[name] = transforms.evaluation(size)(record, None)["image"]
    side = run.info["grid"]
    patch = size // side
    white = read["mask"].mean(-1) > 0.5
    redrawn = white.reshape(side, patch, side, patch).any(axis=(1, 3)).reshape(-1)
    rows = run.batch_size // jax.process_count()
    batch = {"image": np.broadcast_to(read["image"], (rows, size, size, 3))}
    out = run.predict["tokens"](run.state, run.put(batch), jax.random.key(0))
    return {"tokens": sharding.to_host(out["tokens"])[0], "known": ~redrawn}


def load(options) -> tuple:
    """(config, Run) of a masked transformer, as the flags name it."""
    if bool(options.workdir) == bool(options.pretrained):
        raise ValueError("Give one of --workdir=RUN and --pretrained=FILE: what to sample from.")
    if options.tokenizer and not options.pretrained:
        raise ValueError("--tokenizer goes with --pretrained; a run has its own.")
    overrides = runs.parse_overrides(options.set)
    if options.pretrained:
        config, _, run = imported.load(options.pretrained, options.tokenizer, overrides)
    else:
        config, _, run = runs.load(options.workdir, options.step, overrides)
    if config.stage != "maskgit":
        path = options.pretrained or options.workdir
        raise ValueError(f"{path!r} is a run of stage {config.stage!r}, not 'maskgit'.")
    return config, run


def main(argv) -> None:
    del argv
    sharding.initialize_distributed()
    options = flags.FLAGS
    if bool(options.image) != bool(options.mask):
        raise ValueError("--image and --mask go together: what to complete, and where.")
    if not options.out and not options.npz:
        raise ValueError("Nothing would be written: give --out=grid.png, --npz=FILE, or both.")
    config, run = load(options)
    labels = parse_labels(options.labels, class_names(config))
    labels_N = np.resize(labels, options.num or 8 * len(labels))
    if not options.num:
        labels_N = np.sort(labels_N, kind="stable")  # a row of the grid for each class
    known = None
    if options.image:
        known = known_tokens(run, options.image, options.mask, config.data.size)
    images = sample(run, labels_N, options.seed, known)
    if jax.process_index() == 0:
        write(images, labels_N, options.out, options.npz)


def write(images: np.ndarray, labels_N: np.ndarray, out: str, npz: str) -> None:
    """Saves the first 400 images as a grid at `out`, and all at `npz`; "" for neither."""
    for path in filter(None, (out, npz)):
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    if out:
        Image.fromarray(grid(images[:400])).save(out)
        print(f"{out}: {min(len(images), 400)} images")
    if npz:
        np.savez(npz, (np.clip(images, 0, 1) * 255 + 0.5).astype(np.uint8), labels_N)
        print(f"{npz}: {len(images)} images of {images.shape[1]} x {images.shape[2]}")


if __name__ == "__main__":
    flags.DEFINE_string("workdir", "", "Run of a masked transformer.")
    flags.DEFINE_string("pretrained", "", "File of a masked transformer, rather than a run.")
    flags.DEFINE_string("tokenizer", "", "With --pretrained: its tokenizer's file.")
    flags.DEFINE_string("labels", "", "Classes, as numbers or names; all by default.")
    flags.DEFINE_integer(
        "num", 0, "How many images in all, dealt out over the labels; 8 a label.", lower_bound=0
    )
    flags.DEFINE_string("out", "", "Picture to write, a row a class.")
    flags.DEFINE_string("npz", "", "uint8 images to write, for ADM's evaluator.")
    flags.DEFINE_string("image", "", "Image to complete.")
    flags.DEFINE_string("mask", "", "Picture whose white part is drawn anew.")
    flags.DEFINE_integer("seed", 0, "Another seed, other images.")
    flags.DEFINE_integer("step", None, "Which checkpoint; the latest by default.")
    flags.DEFINE_multi_string("set", [], "KEY=VALUE over the run's config, such as "
                              "sampling.num_steps=16; may be given several times.")
    errors.run(main)
