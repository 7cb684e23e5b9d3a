"""What users get wrong, and the sentence that each mistake gets, before it has cost anything.

The list is the contract: a name, what is done wrong, and what is said. None of these is a stack of
frames; the letter says which kind of fault it stands for: A data that doesn't fit, B data that
would be read as something else, C settings, D what would come to light late, E messages, F faults,
G files.
"""

import json
import os
import pathlib
import shutil
import socket
import types

import jax
import numpy as np
import pytest
from absl import flags
from flax import traverse_util
from PIL import Image

from configs import maskgit_tokenizer, maskgit_transformer
from fsq_jax import compare, encode, evaluate, export, reference, runs, sample, score, train
from fsq_jax.data.open import open_dataset
from fsq_jax.reports import run as run_page
from fsq_jax.runs.config import parse_overrides
from fsq_jax.runtime import workdir_lock
from fsq_jax.runtime.metric_writer import MetricWriter
from fsq_jax.scoring import protocols
from tests import programs, tiny


def train_with(at, changes, **more):
    """Trains the smallest tokenizer with these changes."""
    config = tiny.tokenizer(changes)
    for name, value in more.items():
        config[name] = value
    return train.train(config, str(at.tmp / "run"))


def sample_with(at, **options):
    """`fsq_jax.sample` with these flags."""
    values = dict(
        workdir=at.transformer,
        stage_1="",
        labels="",
        num=0,
        out="",
        npz="",
        image="",
        mask="",
        seed=0,
        step=None,
        set=[],
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flags, "FLAGS", type("Flags", (), values | options))
        sample.main([])


def score_of(at, array, **header):
    """The score of an .npz with this array."""
    path = at.tmp / "samples.npz"
    np.savez(path, array)
    return score.score(str(path), str(path), protocols.named("adm").over("random"), **header)


def picture(at, name="in.png", size=(16, 16), cut=None):
    """The path of a picture, cut off after so many bytes."""
    path = at.tmp / name
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    if cut:
        path.write_bytes(path.read_bytes()[:cut])
    return str(path)


def arrays(at, **features):
    """`arrays:` of a folder with these features, in both splits."""
    rng = np.random.default_rng(0)
    given = {
        "image": rng.integers(0, 256, (24, 8, 8, 3), dtype=np.uint8),
        "label": np.arange(24, dtype=np.int32) % 2,
    } | features
    for split in ("train", "validation"):
        folder = at.tmp / "arrays" / split
        folder.mkdir(parents=True)
        for name, value in given.items():
            np.save(folder / f"{name}.npy", value)
        (folder / "meta.json").write_text(json.dumps({"class_names": ["a", "b"]}))
    return {
        "data.source": f"arrays:{at.tmp / 'arrays'}",
        "data.train_split": "train",
        "data.eval_split": "validation",
    }


def written(at, name, data):
    path = at.tmp / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return str(path)


def in_64_bits(at):
    with jax.enable_x64(True):
        train_with(at, {})


def locked(at):
    lock = workdir_lock.WorkdirLock(str(at.tmp / "run"))
    try:
        train_with(at, {})
    finally:
        lock.close()


def damaged_run(at, name, data):
    """A copy of the tokenizer's run in which a file holds something else."""
    workdir = shutil.copytree(at.tokenizer, at.tmp / "run")
    (workdir / name).write_bytes(data)
    return str(workdir)


def full_disk(at):
    """A run whose metrics can't be written."""
    writer = MetricWriter(str(at.tmp / "run"))
    writer._file.close()
    writer._file = open("/dev/full", "w", buffering=1)  # noqa: SIM115
    writer.scalars(1, "train", {"loss": 1.0})


def run_without(at, name, kind):
    """A copy of the tokenizer's run in which a folder or a pipe has the place of a file."""
    workdir = shutil.copytree(at.tokenizer, at.tmp / "run")
    (workdir / name).unlink(missing_ok=True)
    {"folder": os.mkdir, "pipe": os.mkfifo}[kind](workdir / name)
    return str(workdir)


def changed_config(at, changes):
    """A copy of the tokenizer's run whose config.json was edited: {key: value, or None}."""
    workdir = shutil.copytree(at.tokenizer, at.tmp / "run")
    config = traverse_util.flatten_dict(json.loads((workdir / "config.json").read_text()), sep=".")
    config = {k: v for k, v in (config | changes).items() if v is not None}
    (workdir / "config.json").write_text(json.dumps(traverse_util.unflatten_dict(config, sep=".")))
    return str(workdir)


def images(at, change):
    """`folder:` of twelve pictures in train/a and val/a, with something done to it."""
    for split in ("train", "val"):
        for number in range(12):
            picture(at, f"images/{split}/a/{number}.png", (8, 8))
    change(at.tmp / "images" / "train")
    data = {"data.source": f"folder:{at.tmp / 'images'}", "data.train_split": "train"}
    return train_with(at, data | {"data.eval_split": "val"})


def panoptic(at, segments, **meta):
    """Trains UViM's stage I on arrays with these segments."""
    values = arrays(at, segments=segments) | {"task.num_semantics": 0}
    meta = {"class_names": ["a", "b"], "segment_names": ["void", "x", "y"], "things": [1]} | meta
    for split in ("train", "validation"):
        (at.tmp / "arrays" / split / "meta.json").write_text(json.dumps(meta))
    return train.train(tiny.label_coder(values, task="panoptic"), str(at.tmp / "run"))


def socket_at(path):
    """A socket; its name may be longer than one can be bound to."""
    with socket.socket(socket.AF_UNIX) as server, pytest.MonkeyPatch.context() as patch:
        patch.chdir(path.parent)
        server.bind(path.name)


SEGMENTS = np.stack([np.arange(24 * 64).reshape(24, 8, 8) % 3] * 2, -1).astype(np.int16)
PIXELS = np.random.default_rng(1).integers(0, 256, (24, 8, 8, 3), dtype=np.uint8)


def metres(at, depth, **changes):
    """The config of depth on arrays with this depth, put together as a run begins."""
    values = arrays(at, depth=depth) | {"task.max_depth": 10.0}
    return train.train(tiny.label_coder(values | changes), str(at.tmp / "run"))


# name: (kind of fault, what is done, what is said)
CASES = {
    # The config: before anything is read.
    "batch over devices": (
        "C",
        lambda at: train_with(at, {"batch_size": 12}),
        "batch_size=12 is not a multiple of 8 devices x accumulate=1; the nearest that is: 16.",
    ),
    "no batch": (
        "C",
        lambda at: train_with(at, {"batch_size": 0}),
        "batch_size=0 must be at least 1.",
    ),
    "no evaluation batch": (
        "C",
        lambda at: train_with(at, {"eval_batch_size": 0}),
        "eval_batch_size=0 must be at least 1.",
    ),
    "64 bits": ("C", in_64_bits, "JAX_ENABLE_X64 is set, and the networks here are of 32 bits"),
    "a level of 1": (
        "C",
        lambda at: train_with(at, {"quantizer.levels": (8, 1, 5)}),
        "Every level must be at least 2, but levels are (8, 1, 5).",
    ),
    "size and tokens": (
        "C",
        lambda at: train_with(at, {"data.size": 9}),
        "Images of 9x9 pixels do not divide into tokens of 2x2 (2 channel_multipliers).",
    ),
    "dtype": (
        "C",
        lambda at: train_with(at, {"model.dtype": "bf16"}),
        "model.dtype='bf16' must be one of ('float32', 'bfloat16', 'float16').",
    ),
    "stage": (
        "C",
        lambda at: train_with(at, {"stage": "tokeniser"}),
        "stage='tokeniser' is unknown; did you mean 'maskgit_tokenizer'?",
    ),
    "warm-up": (
        "C",
        lambda at: train_with(at, {"optim.warmup_steps": 50}),
        "warmup_steps=50 leaves nothing of total_steps=12 to train on.",
    ),
    "argument": (
        "C",
        lambda at: maskgit_tokenizer.get_config("quantiser=vq"),
        "Config argument 'quantiser' is unknown; did you mean 'quantizer'?",
    ),
    "override": (
        "C",
        lambda at: runs.load(at.transformer, overrides={"sampling.guidnce": 1.0}),
        "The config has no 'sampling.guidnce'; did you mean 'sampling.guidance'?",
    ),
    "type of an override": (
        "C",
        lambda at: runs.load(at.transformer, overrides={"sampling.num_steps": 2.5}),
        "sampling.num_steps=2.5 is not of type int, as 4 is.",
    ),
    "form of an override": (
        "C",
        lambda at: parse_overrides(["sampling.guidance"]),
        "'sampling.guidance' is not of the form KEY=VALUE.",
    ),
    "negative guard": (
        "F",
        lambda at: train_with(at, {"guard.max_loss": -1.0}),
        "max_loss=-1.0 and max_logit_gap=0.0 must be at least 0",
    ),
    # Values that nothing that reads them looks at.
    "a seed below 0": ("C", lambda at: train_with(at, {"seed": -1}), "seed=-1 must be at least 0."),
    "a decay above 1": (
        "C",
        lambda at: train_with(at, {"ema_decay": 1.5}),
        "ema_decay=1.5 must be at least 0, and 1 at most.",
    ),
    "a learning rate of NaN": (
        "C",
        lambda at: train_with(at, {"optim.learning_rate": float("nan")}),
        "optim.learning_rate=nan must be at least 0.",
    ),
    "R1 at every 0th step": (
        "C",
        lambda at: train_with(at, {"loss.r1_every": 0}),
        "loss.r1_every=0 must be at least 1.",
    ),
    "no filters": (
        "C",
        lambda at: train_with(at, {"model.filters": 0}),
        "model.filters=0 must be at least 1.",
    ),
    "no levels of resolution": (
        "C",
        lambda at: train_with(at, {"model.channel_multipliers": ()}),
        "model.channel_multipliers=() must be at least 1.",
    ),
    "an aspect of one number": (
        "C",
        lambda at: train_with(at, {"data.aspect": (2.0,)}),
        "Needs 0 < min_area <= 1 and 0 < aspect[0] <= aspect[1], not min_area=0.8, aspect=(2.0,).",
    ),
    "a crop of two numbers": (
        "C",
        lambda at: train_with(at, {"data.eval_crop": (0, 9)}),
        "A crop is (top, bottom, left, right), not (0, 9).",
    ),
    "the best of nothing": (
        "D",
        lambda at: train_with(at, {"best": "codebok/usage"}),
        "best='codebok/usage' is no evaluator's metric; did you mean 'codebook'?",
    ),
    "evaluated every word": (
        "D",
        lambda at: train_with(at, {}, evals={"codebook": {"every": "x"}}),
        "evals.codebook.every='x' must be a number of steps, 0 or more.",
    ),
    # Files among images, and arrays of other kinds.
    "a pipe among images": (
        "B",
        lambda at: images(at, lambda train: os.mkfifo(train / "a" / "x.png")),
        "a/x.png is not a file; remove it, or put the image there.",
    ),
    "a socket among images": (
        "B",
        lambda at: images(at, lambda train: socket_at(train / "a" / "x.png")),
        "a/x.png is not a file; remove it, or put the image there.",
    ),
    "a link to itself": (
        "B",
        lambda at: images(at, lambda train: (train / "a" / "x.png").symlink_to("x.png")),
        "a/x.png is a link to nothing; remove it",
    ),
    "a class that is another": (
        "B",
        lambda at: images(at, lambda train: (train / "b").symlink_to(train / "a")),
        "are the same folder; its images would count twice.",
    ),
    "a class without an image": (
        "A",
        lambda at: images(at, lambda train: (train / "b").mkdir()),
        "b is a class of folder:",
    ),
    "a TIFF of millimetres": (
        "B",
        lambda at: images(
            at,
            lambda train: Image.fromarray(np.full((8, 8), 900, np.uint16)).save(
                train / "a" / "0.tiff"
            ),
        ),
        "0.tiff has pixels of uint16 from 900 to 900, no picture: one of 16 bits goes up to 65535.",
    ),
    "segments of another size": (
        "A",
        lambda at: panoptic(at, SEGMENTS[:, :4, :4]),
        "has segments of 4 x 4 and an image of 8 x 8 pixels; expected the same height and width.",
    ),
    "segments of floats": (
        "A",
        lambda at: panoptic(at, SEGMENTS.astype(np.float32)),
        "segments.npy is float32 of shape (24, 8, 8, 2); expected integers [N,H,W,2]",
    ),
    "segments of class 255": (
        "A",
        lambda at: panoptic(at, np.where(SEGMENTS == 2, 255, SEGMENTS)),
        "has segments of classes 0 to 255",
    ),
    "nothing but void": (
        "A",
        lambda at: panoptic(at, SEGMENTS * 0),
        "Every pixel of 24 records of arrays:",
    ),
    "things of no class": (
        "A",
        lambda at: panoptic(at, SEGMENTS, things=[7]),
        "things=[7] must be a list of numbers of classes, 1 to 2 of segment_names.",
    ),
    "depth of NaN": (
        "A",
        lambda at: metres(at, np.full((24, 8, 8), np.nan, np.float32)),
        "expected floats above 0.001 metres, and 0 where it is not known.",
    ),
    "labels of one-hot rows": (
        "A",
        lambda at: train_with(at, arrays(at, label=np.eye(24, 2, dtype=np.int32))),
        "label.npy is int32 of shape (24, 2); expected integers [N]",
    ),
    "arrays of objects": (
        "G",
        lambda at: train_with(at, arrays(at, image=np.array([None] * 24, object))),
        "Python objects, which are never loaded",
    ),
    # Runs whose files are damaged.
    "a config without data": (
        "G",
        lambda at: evaluate.evaluate(changed_config(at, {"data.size": None})),
        "run is not a whole config: it lacks data.size.",
    ),
    "a config with a word for a number": (
        "G",
        lambda at: evaluate.evaluate(changed_config(at, {"model.filters": "x"})),
        "run: model.filters is 'x'; expected an integer.",
    ),
    "a config of another quantizer": (
        "G",
        lambda at: evaluate.evaluate(changed_config(at, {"quantizer.name": "fsqq"})),
        "run: quantizer='fsqq' is unknown; did you mean 'fsq'?",
    ),
    "a config of a larger model": (
        "G",
        lambda at: evaluate.evaluate(changed_config(at, {"model.filters": 24})),
        "decoder/Conv_0/bias has shape (8,), expected (24,).",
    ),
    "a config of a deeper stage I": (
        "G",
        lambda at: encode.encode(changed_config(at, {"model.dense_layers": 1}), str(at.tmp / "o")),
        "arrays, such as 'decoder/DenseLayers_0/Dense_0/bias'.",
    ),
    "evaluators in a list": (
        "G",
        lambda at: evaluate.evaluate(
            damaged_run(at, "config.json", b'{"stage": "x", "steps": 1, "evals": [1]}')
        ),
        "config.json: evals is a list; expected an object.",
    ),
    "config.json is a folder": (
        "G",
        lambda at: evaluate.evaluate(run_without(at, "config.json", "folder")),
        "config.json is a folder; expected a plain file.",
    ),
    "config.json is a pipe": (
        "G",
        lambda at: evaluate.evaluate(run_without(at, "config.json", "pipe")),
        "config.json is a pipe; expected a plain file.",
    ),
    "results.json is a pipe": (
        "G",
        lambda at: compare.compare([at.tokenizer, run_without(at, "results.json", "pipe")]),
        "results.json is a pipe; expected a plain file.",
    ),
    "results.json cut": (
        "G",
        lambda at: compare.compare([at.tokenizer, damaged_run(at, "results.json", b'{"a": ')]),
        "results.json is not readable as JSON",
    ),
    "metrics.jsonl with another line": (
        "G",
        lambda at: run_page.write(damaged_run(at, "metrics.jsonl", b'{"step": 1}\n')),
        "metrics.jsonl, line 1, lacks split.",
    ),
    "one run beside itself": (
        "E",
        lambda at: compare.compare([at.tokenizer, at.tokenizer]),
        "is named twice.",
    ),
    # Data.
    "kind of data": (
        "A",
        lambda at: train_with(at, {"data.source": "folders:cats"}),
        "Unknown data 'folders:cats': a spec starts with arrays, folder,",
    ),
    "no such folder": (
        "A",
        lambda at: train_with(at, {"data.source": "folder:/no/such/folder"}),
        "folder:/no/such/folder is not a folder.",
    ),
    "TFDS not prepared": (
        "A",
        lambda at: train_with(
            at, {"data.source": "tfds:fashion_mnist", "data.data_dir": "/no/such"}
        ),
        "tfds:fashion_mnist is not prepared under /no/such; prepare it with TFDS",
    ),
    "TFDS knows no such": (
        "A",
        lambda at: train_with(at, {"data.source": "tfds:fashion_mnst"}),
        "Did you mean 'fashion_mnist'?",
    ),
    "no such split": (
        "A",
        lambda at: train_with(at, {"data.train_split": "trian"}),
        "scenes has no split 'trian'; it has train, validation. Did you mean 'train'?",
    ),
    "cut of nothing": (
        "A",
        lambda at: open_dataset("scenes:train[9:9]", "train", 8),
        "'train[9:9]' keeps records 9 to 9 of scenes train",
    ),
    "no split at all": (
        "A",
        lambda at: open_dataset("scenes", "train[", 8),
        "'train[' is not a split; write train, train[:1000] or train[:10%].",
    ),
    "cut image": (
        "G",
        lambda at: train_with(
            at,
            {
                "data.source": "folder:"
                f"{pathlib.Path(picture(at, 'd/cat/1.png', cut=100)).parent.parent}",
                "data.train_split": "train",
                "data.eval_split": "train",
            },
        ),
        "1.png is not a whole, readable image",
    ),
    "images of 400": (
        "A",
        lambda at: train_with(at, arrays(at, image=PIXELS.astype(np.float32) * 2)),
        "image.npy",
    ),
    "a label of 999": (
        "A",
        lambda at: train_with(at, arrays(at, label=np.full(24, 999, np.int32))),
        "label.npy",
    ),
    "a label of -1": (
        "A",
        lambda at: train_with(at, arrays(at, label=np.full(24, -1, np.int32))),
        "label.npy",
    ),
    "depth in millimetres": (
        "A",
        lambda at: metres(at, np.full((24, 8, 8), 4000, np.float32)),
        "task.max_depth is 10 metres",
    ),
    "depth of another size": (
        "A",
        lambda at: metres(at, np.full((24, 4, 4), 4, np.float32)),
        "depth of 4 x 4 and an image of 8 x 8 pixels; expected the same height and width.",
    ),
    "classes that the config hasn't": (
        "A",
        lambda at: train.train(
            tiny.transformer(at.tokenizer, {"data.size": 16, "num_classes": 2}), str(at.tmp / "r")
        ),
        "scenes train has 30 classes and the config's num_classes is 2",
    ),
    "arrays of two lengths": (
        "B",
        lambda at: train_with(at, arrays(at, label=np.zeros(23, np.int32))),
        "has arrays of different lengths",
    ),
    "labels beyond int32": (
        "B",
        lambda at: train_with(at, arrays(at, label=np.full(24, 2**40))),
        "label.npy",
    ),
    # What evaluation would refuse after training.
    "unknown evaluator": (
        "D",
        lambda at: train_with(at, {}, evals={"codebok": {"every": 0}}),
        "Evaluators ['codebok'] are unknown; there are ['codebook',",
    ),
    "evaluator's argument": (
        "D",
        lambda at: train_with(at, {}, evals={"codebook": {"every": 0, "limt": 3}}),
        "evals.codebook: got an unexpected keyword argument 'limt'.",
    ),
    "evaluator of another stage": (
        "D",
        lambda at: train_with(at, {}, evals={"depth": {"every": 0}}),
        "evals.depth can't measure what this stage does; it is evaluated by codebook, "
        "reconstruction.",
    ),
    "features": (
        "D",
        lambda at: train_with(at, {}, evals={"reconstruction": {"every": 0, "features": "vgg"}}),
        "evals.reconstruction: There are no features named 'vgg'; choose one of",
    ),
    "reference of another protocol": (
        "D",
        lambda at: train_with(
            at,
            {},
            evals={
                "reconstruction": {
                    "every": 0,
                    "features": "random",
                    "reference": written(at, "ref.npz", "no archive"),
                }
            },
        ),
        "ref.npz is truncated or damaged (File is not a zip file); expected an .npz file.",
    ),
    "perceptual weights": (
        "D",
        lambda at: train_with(at, {"loss.perceptual": 0.1, "perceptual.name": "resnet50"}),
        "The perceptual network resnet50 needs the path of its weights",
    ),
    "stage I isn't named": (
        "D",
        lambda at: train.train(maskgit_transformer.get_config("scale=smoke"), str(at.tmp / "run")),
        "maskgit_transformer needs a trained stage I: --config=configs/maskgit_transformer.py:",
    ),
    "a size that tokens don't fit": (
        "D",
        lambda at: train.train(
            tiny.transformer(at.tokenizer, {"data.size": 18, "num_classes": 30}),
            str(at.tmp / "run"),
        ),
        "data.size=18 is not a multiple of the 4 pixels that a token of ",
    ),
    # Workdirs.
    "no run": (
        "D",
        lambda at: evaluate.evaluate(str(at.tmp / "nowhere")),
        "nowhere is not a file; expected a flax msgpack, an .npz or a safetensors file of weights",
    ),
    "a run of another stage": (
        "D",
        lambda at: encode.encode(at.transformer, str(at.tmp / "out")),
        "is of stage 'maskgit_transformer'; one of stage 'maskgit_tokenizer' or 'uvim_base' is",
    ),
    "a workdir of another run": (
        "D",
        lambda at: train.train(tiny.transformer(at.tokenizer, {"num_classes": 30}), at.tokenizer),
        "holds a run of another config (stage: maskgit_tokenizer there, maskgit_transformer here).",
    ),
    "two trainings in a workdir": ("F", locked, "is being trained in by process "),
    "no such checkpoint": (
        "D",
        lambda at: evaluate.evaluate(at.tokenizer, None, 99),
        "has no checkpoint of step 99; there are [3].",
    ),
    "evaluator of a run": (
        "D",
        lambda at: evaluate.evaluate(at.tokenizer, ["codebok"]),
        "This run has no evaluator 'codebok'; did you mean 'codebook'?",
    ),
    "config.json cut": (
        "G",
        lambda at: evaluate.evaluate(damaged_run(at, "config.json", b'{"stage": ')),
        "config.json",
    ),
    # Outputs, before anything is computed.
    "a workdir that is a file": (
        "D",
        lambda at: train.train(tiny.tokenizer(), written(at, "file", "x")),
        "file' is a file, not a folder to write to.",
    ),
    "a workdir that can't be made": (
        "D",
        lambda at: train.train(tiny.tokenizer(), "/proc/none/run"),
        "'/proc/none/run' can't be written to (",
    ),
    "results in a folder": (
        "D",
        lambda at: evaluate.evaluate(at.tokenizer, out=str(at.tmp)),
        "is a folder; give the name of a file to write.",
    ),
    "nothing to write": (
        "D",
        lambda at: sample_with(at),
        "Nothing would be written: give --out=grid.png, --npz=FILE, or both.",
    ),
    "a picture without a suffix": (
        "D",
        lambda at: sample_with(at, out=str(at.tmp / "grid")),
        "grid' ends in no suffix of a picture (none); give .png, .jpg or .webp, for example.",
    ),
    "arrays in a folder": (
        "D",
        lambda at: sample_with(at, npz=str(at.tmp)),
        "is a folder; give the name of a file to write.",
    ),
    "one file for two": (
        "D",
        lambda at: sample_with(at, npz=str(at.tmp / "a.png"), out=str(at.tmp / "a.png")),
        "--out and --npz are one file",
    ),
    "tokens that are there": (
        "D",
        lambda at: (
            os.makedirs(at.tmp / "cache" / "train"),
            encode.encode(at.tokenizer, str(at.tmp / "cache")),
        ),
        "is there already; remove it, or name another --out.",
    ),
    "an export into a file": (
        "D",
        lambda at: export.export(at.tokenizer, "safetensors", written(at, "file", "x")),
        "file' is a file, not a folder to write to.",
    ),
    "a reference that can't be written": (
        "D",
        lambda at: reference.build(
            "scenes", 8, "/proc/none/ref.npz", protocols.named("adm").over("random")
        ),
        "'/proc/none' can't be written to (",
    ),
    "a full disk": ("E", full_disk, "metrics.jsonl"),
    # Sampling.
    "label": (
        "D",
        lambda at: sample.parse_labels("trousr", ["top", "trouser"]),
        "Label 'trousr' is neither a number below 2 nor one of top, trouser.",
    ),
    "an image without a mask": (
        "D",
        lambda at: sample_with(at, out="x.png", image="x.png"),
        "--image and --mask go together: what to complete, and where.",
    ),
    "samples of a tokenizer": (
        "D",
        lambda at: sample_with(at, out="x.png", workdir=at.tokenizer),
        "is of stage 'maskgit_tokenizer'; samples are drawn from 'maskgit_transformer',",
    ),
    "no such image": (
        "D",
        lambda at: sample.known_tokens(at.run, picture(at), "no.png"),
        "There is no image 'no.png'.",
    ),
    "no picture": (
        "G",
        lambda at: sample.known_tokens(at.run, picture(at), written(at, "mask.png", "no picture")),
        "mask.png is not a whole, readable image (unknown format; 10 bytes).",
    ),
    # Scores.
    "images above 1": (
        "E",
        lambda at: score_of(at, np.full((4, 8, 8, 3), 200, np.float32)),
        "are floats from 200 to 200; floats must be in [0, 1], and images from 0 to 255 must be",
    ),
    "one image": (
        "E",
        lambda at: score_of(at, np.zeros((1, 8, 8, 3), np.uint8)),
        "holds one image; a distance of distributions needs more.",
    ),
    "no images": (
        "E",
        lambda at: score_of(at, np.zeros((4, 8), np.uint8)),
        "arr_0 is uint8 of shape",
    ),
    "a text for an archive": (
        "G",
        lambda at: score.score(
            written(at, "a.npz", "text"), at.tokenizer, protocols.named("adm").over("random")
        ),
        "a.npz is neither a folder nor a whole .npz file.",
    ),
    "a protocol": ("E", lambda at: protocols.named("admm"), "There is no protocol 'admm'; choose"),
}


@pytest.fixture(scope="module")
def run(trained):
    return runs.load(trained.transformer)


@pytest.mark.parametrize("name", CASES)
def test_one_sentence(name, trained, run, tmp_path):
    _, wrong, sentence = CASES[name]
    at = types.SimpleNamespace(
        tmp=tmp_path, tokenizer=trained.tokenizer, transformer=trained.transformer, run=run
    )
    with pytest.raises((ValueError, OSError)) as error:  # what `cli` prints as one line
        wrong(at)
    said = str(error.value)
    assert sentence in said and "\n" not in said
    assert not list(tmp_path.rglob("checkpoints/*/state")) or "damaged" in name or "run" in said


def test_the_list_is_long_enough():
    assert len(CASES) >= 100 and {letter for letter, *_ in CASES.values()} == set("ABCDEFG")


PROGRAMS = {
    "unknown argument": (
        ["train", "--workdir=unused", "--config=configs/maskgit_tokenizer.py:scale=benhc"],
        "scale='benhc' is unknown; did you mean 'bench'?",
    ),
    "misspelt override": (
        [
            "train",
            "--workdir=unused",
            "--config=configs/maskgit_tokenizer.py:scale=smoke",
            "--config.optim.learning_rat=1",
        ],
        "The config has no 'learning_rat'. Did you mean \"learning_rate\" instead of "
        '"learning_rat"?',
    ),
}


def test_programs_end_with_a_sentence_and_status_1():
    for name, ((program, *options), sentence) in PROGRAMS.items():
        done = programs.run(f"fsq_jax.{program}", *options, FSQ_JAX_TRACEBACK="")
        assert done.returncode == 1, (name, done.stderr)
        (line,) = done.stderr.strip().splitlines()
        assert line.startswith("Error: ") and sentence in line, done.stderr


def test_samples_are_written_where_it_was_said(trained, tmp_path):
    sample_with(
        types.SimpleNamespace(transformer=trained.transformer), num=2, npz=str(tmp_path / "other")
    )
    assert os.listdir(tmp_path) == ["other"] and np.load(tmp_path / "other")["arr_0"].shape[0] == 2


def test_kid_of_few_images_does_not_cost_the_frechet_distance(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", images)
    np.savez(tmp_path / "b.npz", 255 - images)
    scores = score.score(
        str(tmp_path / "a.npz"),
        str(tmp_path / "b.npz"),
        protocols.named("torch-fidelity").over("random"),
    )
    assert {"fd_random", "kid_random", "precision_random"} <= set(scores)
    assert scores["kid_random"]["protocol"]["kernel_subset"] == 20
