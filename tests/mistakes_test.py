"""Wrong input: one sentence that says what is wrong, by the function and by the program."""

import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
from absl import flags
from PIL import Image

from configs import maskgit_tokenizer, maskgit_transformer
from fsq_jax import encode, evaluate, runs, sample, train
from fsq_jax.runs.config import parse_overrides
from tests import tiny

pytestmark = pytest.mark.usefixtures("quickly")


def message(function, *arguments, **keywords) -> str:
    """What a mistake is told, on one line as programs print it."""
    with pytest.raises((ValueError, OSError)) as error:
        function(*arguments, **keywords)
    text = str(error.value)
    assert "\n" not in text
    return text


# Configs: (what is wrong with the smallest tokenizer's config, the sentence).
CONFIGS = {
    "batch over devices": (
        {"batch_size": 12},
        "batch_size=12 is not a multiple of 8 devices x accumulate=1; the nearest that is: 16.",
    ),
    "a level of 1": (
        {"quantizer.levels": (8, 1, 5)},
        "Every level must be at least 2, but levels are (8, 1, 5).",
    ),
    "size and tokens": (
        {"data.size": 9},
        "Images of 9x9 pixels do not divide into tokens of 2x2 (2 channel_multipliers).",
    ),
    "kind of data": (
        {"data.source": "folders:cats"},
        "Unknown data 'folders:cats': a spec starts with arrays, folder, hf, parquet, scenes, tfds, tokens, wds. Did "
        "you mean 'folder'?",
    ),
    "no such folder": (
        {"data.source": "folder:/no/such/folder"},
        "folder:/no/such/folder is not a folder.",
    ),
    "TFDS not prepared": (
        {"data.source": "tfds:fashion_mnist", "data.data_dir": "/no/such/folder"},
        "tfds:fashion_mnist is not prepared under /no/such/folder; prepare it with TFDS "
        '(file_format="array_record") or set data_dir to where it is.',
    ),
    "TFDS knows no such": (
        {"data.source": "tfds:fashion_mnst"},
        "Did you mean 'fashion_mnist'?",
    ),
    "no such split": (
        {"data.train_split": "trian"},
        "scenes has no split 'trian'; it has train, validation. Did you mean 'train'?",
    ),
    "dtype": (
        {"model.dtype": "bf16"},
        "model.dtype='bf16' must be one of ('float32', 'bfloat16', 'float16').",
    ),
    "stage": (
        {"stage": "tokeniser"},
        "stage='tokeniser' is unknown; did you mean 'maskgit_tokenizer'?",
    ),
    "warm-up": (
        {"optim.warmup_steps": 50},
        "warmup_steps=50 leaves nothing of total_steps=12 to train on.",
    ),
    "perceptual weights": (
        {"loss.perceptual": 0.1, "perceptual.name": "resnet50"},
        "The perceptual network resnet50 needs the path of its weights, a state dict with "
        "torchvision's names (resnet50-*.pth or .npz): --config.perceptual.path=FILE; without them "
        "choose --config.perceptual.name=efficientnet or --config.loss.perceptual=0.0.",
    ),
}


@pytest.mark.parametrize("changes, sentence", CONFIGS.values(), ids=CONFIGS)
def test_config(changes, sentence, tmp_path):
    said = message(train.train, tiny.tokenizer(changes), str(tmp_path / "run"))
    assert said.endswith(sentence)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_config_arguments():
    assert message(maskgit_tokenizer.get_config, "quantiser=vq") == (
        "Config argument 'quantiser' is unknown; did you mean 'quantizer'?"
    )
    config = maskgit_transformer.get_config("scale=smoke")
    assert message(train.train, config, "unused") == (
        "maskgit_transformer needs a trained stage I: "
        "--config=configs/maskgit_transformer.py:tokenizer=WORKDIR."
    )


def test_workdirs(trained, tmp_path):
    nowhere = str(tmp_path / "nowhere")
    nothing = (
        f"{nowhere} is not a file; expected a flax msgpack, an .npz or a safetensors file of "
        "weights, or the workdir of a run."
    )
    assert message(evaluate.evaluate, nowhere) == nothing
    assert message(encode.encode, nowhere, "unused") == nothing
    assert message(train.train, tiny.transformer(nowhere), "unused") == nothing
    assert message(encode.encode, trained.transformer, "unused") == (
        f"{trained.transformer!r} is of stage 'maskgit_transformer'; one of stage "
        "'maskgit_tokenizer' or 'uvim_base' is needed."
    )
    config = tiny.transformer(trained.tokenizer, {"num_classes": 30})
    assert message(train.train, config, trained.tokenizer) == (
        f"{trained.tokenizer!r} holds a run of another config (stage: maskgit_tokenizer "
        "there, maskgit_transformer here)."
    )
    assert message(train.train, tiny.tokenizer({"seed": 1}), trained.tokenizer).endswith(" more).")


def test_size_of_another_tokenizer(trained):
    config = tiny.transformer(trained.tokenizer, {"data.size": 18, "num_classes": 30})
    assert message(train.train, config, "unused") == (
        f"data.size=18 is not a multiple of the 4 pixels that a token of {trained.tokenizer!r} "
        "covers."
    )


def test_evaluation(trained):
    assert message(evaluate.evaluate, trained.tokenizer, ["codebok"]) == (
        "This run has no evaluator 'codebok'; did you mean 'codebook'?"
    )
    assert message(evaluate.evaluate, trained.tokenizer, None, 99) == (
        f"{trained.tokenizer!r} has no checkpoint of step 99; there are [3]."
    )
    load = lambda **overrides: runs.load(trained.transformer, overrides=overrides)  # noqa: E731
    assert message(load, **{"sampling.guidnce": 1.0}) == (
        "The config has no 'sampling.guidnce'; did you mean 'sampling.guidance'?"
    )
    assert message(load, **{"sampling.num_steps": 2.5}) == (
        "sampling.num_steps=2.5 is not of type int, as 4 is."
    )
    assert message(parse_overrides, ["sampling.guidance"]) == (
        "'sampling.guidance' is not of the form KEY=VALUE."
    )


def test_sampling(trained, generator_run, monkeypatch, tmp_path):
    assert message(sample.parse_labels, "trousr", ["top", "trouser"]) == (
        "Label 'trousr' is neither a number below 2 nor one of top, trouser."
    )
    options = dict(
        out="x.png", npz="", image="x.png", mask="", workdir=trained.transformer,
        stage_1="", step=None, set=[],
    )
    monkeypatch.setattr(flags, "FLAGS", type("Flags", (), options))
    assert message(sample.main, []) == (
        "--image and --mask go together: what to complete, and where."
    )
    options |= dict(image="", workdir=trained.tokenizer)
    monkeypatch.setattr(flags, "FLAGS", type("Flags", (), options))
    assert message(sample.main, []) == (
        f"{trained.tokenizer!r} is of stage 'maskgit_tokenizer'; samples are drawn from "
        "'maskgit_transformer', 'uvim_base' and 'uvim_lm'."
    )
    image = str(tmp_path / "in.png")
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(image)
    mask = str(tmp_path / "mask.png")
    known = lambda: message(sample.known_tokens, generator_run, image, mask)  # noqa: E731
    assert known() == f"There is no image {mask!r}."
    pathlib.Path(mask).write_text("no picture")
    assert known() == f"{mask} is not a whole, readable image (unknown format; 10 bytes)."


@pytest.fixture(scope="module")
def generator_run(trained):
    return runs.load(trained.transformer)


def test_a_damaged_image(tmp_path):
    folder = tmp_path / "images" / "cat"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(20):
        noise = rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{i}.png")
    for file in folder.iterdir():
        file.write_bytes(file.read_bytes()[:100])
    config = tiny.tokenizer({
        "data.source": f"folder:{tmp_path / 'images'}", "data.train_split": "train",
        "data.eval_split": "validation",
    })
    said = message(train.train, config, str(tmp_path / "run"))
    assert said.startswith(str(folder))
    assert said.endswith("is not a whole, readable image (image file is truncated; 100 bytes).")


def test_damaged_runs(trained, tmp_path):
    workdir = shutil.copytree(trained.tokenizer, tmp_path / "run")
    state = workdir / "checkpoints" / "3" / "state"
    for file in state.rglob("*"):
        if file.is_file():
            file.write_bytes(b"rubbish")
    said = message(evaluate.evaluate, str(workdir))
    assert said.startswith(f"Checkpoint {state} is damaged or incomplete (")
    (workdir / "config.json").write_text('{"stage": ')
    assert message(evaluate.evaluate, str(workdir)).startswith(
        f"{workdir}/config.json is not readable as JSON ("
    )


PROGRAMS = {
    "unknown argument": (
        ["train", "--workdir=unused", "--config=configs/maskgit_tokenizer.py:scale=benhc"],
        "scale='benhc' is unknown; did you mean 'bench'?",
    ),
    "misspelt override": (
        ["train", "--workdir=unused", "--config=configs/maskgit_tokenizer.py:scale=smoke",
         "--config.optim.learning_rat=1"],
        "The config has no 'learning_rat'. Did you mean \"learning_rate\" instead of "
        '"learning_rat"?',
    ),
    "no run": (
        ["evaluate", "--workdir=/no/such/run"],
        "/no/such/run is not a file; expected a flax msgpack, an .npz or a safetensors file of "
        "weights, or the workdir of a run.",
    ),
    "nothing to write": (
        ["sample", "--workdir=unused"],
        "Nothing would be written: give --out=grid.png, --npz=FILE, or both.",
    ),
}


def test_programs_end_with_a_sentence_and_status_1():
    environment = {k: v for k, v in os.environ.items() if k != "FSQ_JAX_TRACEBACK"}
    processes = {
        name: subprocess.Popen(
            [sys.executable, "-m", f"fsq_jax.{program}", *options], cwd=tiny.ROOT, text=True,
            env=environment | {"JAX_PLATFORMS": "cpu"}, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for name, ((program, *options), _) in PROGRAMS.items()
    }
    for name, process in processes.items():
        _, said = process.communicate(timeout=120)
        assert process.returncode == 1, (name, said)
        (line,) = said.strip().splitlines()
        assert line.startswith("Error: ") and PROGRAMS[name][1] in line, said
