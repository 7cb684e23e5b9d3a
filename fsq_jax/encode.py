"""Writes a token cache: the records of a data set as the tokens of a trained stage I.

python -m fsq_jax.encode --workdir=runs/tokenizer --out=runs/tokens --views=4
python -m fsq_jax.train --workdir=runs/maskgit \
    --config=configs/maskgit_transformer.py:tokenizer=runs/tokenizer,token_cache=runs/tokens

A tokenizer's tokens stand for its images; those of UViM's stage I for labels, and its stage II
reads them beside the images. OUT/train/ gets tokens.npy int32 [records, views, tokens], labels.npy
[records], and meta.json, which says by which weights they were made; stage II refuses a cache of
others.
"""

import os
import shutil

import jax
import numpy as np
from absl import flags

from fsq_jax.data import token_cache
from fsq_jax.runs import inputs
from fsq_jax.runs.frozen import load_stage_1
from fsq_jax.runtime import cli, outputs, sharding
from fsq_jax.runtime.files import write_json, written_whole
from fsq_jax.runtime.progress import tracked
from fsq_jax.runtime.user_error import UserError


def encode(workdir: str, out: str, views: int = 1, step: int | None = None) -> str:
    """Encodes the training split of a stage I's run; returns the folder that was written.

    Args:
      workdir: the run of a tokenizer or of UViM's stage I.
      out: the cache's folder; OUT/train must not be there yet.
      views: crops and flips of each image, drawn as in training; with one, images are as they
        are for evaluation.
      step: which checkpoint; the latest by default.

    Raises:
      UserError: for a folder that holds no stage I, or an OUT/train that is there.
    """
    if views < 1:
        raise UserError(f"{views=} must be at least 1.")
    folder = os.path.join(out, "train")
    if os.path.exists(folder):
        raise UserError(f"{folder!r} is there already; remove it, or name another --out.")
    outputs.check_folder(folder)
    trained = load_stage_1(workdir, step=step)
    config, mesh = trained.config, sharding.make_mesh()
    config.data.skip_damaged = False  # the cache has every record of the data, in its order
    variables = sharding.put(trained.variables, sharding.replicated(mesh))
    to_tokens = jax.jit(trained.encode)
    dataset = inputs.eval_dataset(config, "train")
    augment, plain = inputs.transforms_of(config)
    filled = sharding.padded(config.eval_batch_size, mesh)

    tokens_NVL, labels_N = [], np.empty(0, np.int32)
    for view in range(views):
        transform = token_cache.view(augment, plain, config.seed, view, views)
        batches = inputs.eval_batches(config, dataset, 0, transform, filled)
        rows, labels = [], []
        for batch in tracked(batches, f"view {view + 1} of {views}", config.eval_batch_size):
            put = sharding.put_batch(batch, mesh)
            indices, label, mask = sharding.to_host(
                (to_tokens(variables, put), put["label"], put["mask"])
            )
            rows.append(indices[mask])
            labels.append(label[mask])
        tokens_NVL.append(np.concatenate(rows))
        labels_N = np.concatenate(labels)
    if jax.process_index() == 0:
        meta = {
            "fingerprint": trained.fingerprint,
            "workdir": workdir,
            "step": trained.step,
            "codebook_size": trained.facts.codebook_size,
            "levels": trained.facts.levels,
            "downsampling": trained.facts.downsampling,
            "num_classes": dataset.num_classes,
            "class_names": dataset.class_names,
            "data": config.data.source,
            "split": "train",
            "views": views,
            "seed": config.seed,
        }
        _write(folder, np.stack(tokens_NVL, axis=1), labels_N, meta)
    return folder


def _write(folder: str, tokens_NVL: np.ndarray, labels_N: np.ndarray, meta: dict) -> None:
    """Writes the cache beside its place, and moves it there once it is whole."""
    partial = folder + ".partial"
    shutil.rmtree(partial, ignore_errors=True)
    os.makedirs(partial)
    for name, array in (("tokens", tokens_NVL), ("labels", labels_N)):
        with written_whole(os.path.join(partial, f"{name}.npy"), "wb") as file:
            np.save(file, array.astype(np.int32))
    write_json(os.path.join(partial, "meta.json"), meta)
    os.rename(partial, folder)


def main(argv) -> None:
    del argv
    sharding.initialize_distributed()
    print(encode(flags.FLAGS.workdir, flags.FLAGS.out, flags.FLAGS.views, flags.FLAGS.step))


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Run of a stage I.", required=True)
    flags.DEFINE_string("out", None, "Folder to write.", required=True)
    flags.DEFINE_integer("views", 1, "Crops and flips of each image; 1: the image as it is.")
    flags.DEFINE_integer("step", None, "Which checkpoint; the latest by default.")
    cli.run(main)
