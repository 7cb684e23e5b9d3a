"""Whatever is written for a data set, an override, a config's argument or labels: one sentence."""

import pathlib
import time

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from configs import maskgit_tokenizer
from fsq_jax.data.open import open_dataset
from fsq_jax.runs.config import override_config, parse_overrides
from fsq_jax.runtime.user_error import UserError
from fsq_jax.sample import parse_labels

PIECES = [
    ":",
    "train",
    "validation",
    "[",
    "]",
    "[:10%]",
    "[10%:]",
    "[-5:]",
    "[:",
    "+",
    "%",
    "-1",
    "0",
    "9" * 30,
    "9" * 5000,
    "\u00b2",
    "\u0663",
    "\0",
    "\n",
    "~nobody",
    "/",
    "..",
    "a" * 300,
    "a" * 5000,
    "\ud800",
    "{",
    "'",
    "\\",
    "=",
    " ",
    ",",
    "None",
    "True",
    "((",
    "()",
    "{[]:1}",
    "[" * 3000,
    "1e999",
    "0x",
    "1_0",
    "8-5",
    "mnist",
    "1.0.0",
    "*",
    "gs://x",
    "cat",
    "scale=smoke",
    "size=",
]
TEXTS = st.one_of(st.lists(st.sampled_from(PIECES), max_size=5).map("".join), st.text(max_size=30))
SECONDS = 2.0
FUZZ = settings(
    max_examples=100, deadline=None, database=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("data") / "images"
    (path / "train" / "cat").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(path / "train" / "cat" / "0.png")
    return path


def check(function, *arguments) -> None:
    """It answers, or says in one sentence what is wrong, and takes no time."""
    started = time.monotonic()
    try:
        function(*arguments)
    except UserError as error:
        assert str(error).strip()
    assert time.monotonic() - started < SECONDS


@FUZZ
@given(kind=st.sampled_from(["", "scenes", "folder:", "folder:IMAGES", "arrays:", "tokens:"]),
       text=TEXTS, split=st.one_of(st.just("train"), TEXTS))  # fmt: skip
def test_data(folder, kind, text, split):
    if not text.startswith(("/", "..", "~")):  # which may be any large folder of this machine
        check(open_dataset, kind.replace("IMAGES", str(folder)) + text, split, 8)


@settings(FUZZ, max_examples=20)
@given(text=TEXTS)
def test_names_of_tfds(tmp_path, text):
    check(open_dataset, "tfds:" + text.replace("/", ""), "train", 8, str(tmp_path))


@FUZZ
@given(name=st.sampled_from(["steps", "quantizer.levels", "data.source", "model", "best", ""]),
       value=TEXTS)  # fmt: skip
def test_overrides(name, value):
    def override():
        for text in (name + value, f"{name}={value}"):
            override_config(maskgit_tokenizer.get_config("scale=smoke"), parse_overrides([text]))

    check(override)


@FUZZ
@given(name=st.sampled_from(["levels=", "scale=", "size=", "data=", ""]), value=TEXTS)
def test_arguments_of_configs(name, value):
    check(maskgit_tokenizer.get_config, name + value)


@FUZZ
@given(text=TEXTS)
def test_labels(text):
    check(parse_labels, text, ("cat", "dog"))


def test_labels_that_are_right():
    np.testing.assert_array_equal(parse_labels("cat,1,0", ("cat", "dog")), [0, 1, 0])
