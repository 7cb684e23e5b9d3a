"""What specs and splits mean, and what is said of those that mean nothing."""

import pytest

from fsq_jax.data import splits


@pytest.mark.parametrize(
    ("spec", "parsed"),
    [
        ("scenes", ("scenes", "", [])),
        ("scenes:train[:4000]", ("scenes", "", ["train[:4000]"])),
        ("scenes:train[:9]+validation[2:]", ("scenes", "", ["train[:9]", "validation[2:]"])),
        ("tfds:mnist", ("tfds", "mnist", [])),
        ("tfds:a/32x32:3.0.1", ("tfds", "a/32x32:3.0.1", [])),
        ("tfds:mnist:3.0.1:train[:10%]", ("tfds", "mnist:3.0.1", ["train[:10%]"])),
        ("folder:/a/b:train[-5:]", ("folder", "/a/b", ["train[-5:]"])),
        ("folder:~/my pictures", ("folder", "~/my pictures", [])),
        ("tokens:runs/one", ("tokens", "runs/one", [])),
    ],
)
def test_specs(spec, parsed):
    assert splits.parse_spec(spec) == parsed


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("scene", "Did you mean 'scenes'"),
        ("imagenet", "starts with arrays, folder, hf, parquet, scenes, tfds, tokens, wds"),
        ("tfds:", "write tfds:NAME"),
        ("folder", "write folder:PATH"),
        ("scenes:train[:4", "scenes takes splits only"),
    ],
)
def test_specs_that_cannot_be(spec, message):
    with pytest.raises(ValueError, match=message):
        splits.parse_spec(spec)


@pytest.mark.parametrize(
    ("split", "first", "last"),
    [
        ("train", 0, 50),
        ("train[:]", 0, 50),
        ("train[:10]", 0, 10),
        ("train[40:]", 40, 50),
        ("train[-5:]", 45, 50),
        ("train[5:-5]", 5, 45),
        ("train[:10%]", 0, 5),
        ("train[-10%:]", 45, 50),
        ("train[50%:30]", 25, 30),
    ],
)
def test_spans(split, first, last):
    assert splits.span(split, 50, "x") == (first, last)


def test_spans_that_keep_nothing_or_too_much():
    for split in ("train[:51]", "train[20:20]", "train[30:20]", "train[-60:]", "train[:0]"):
        with pytest.raises(ValueError, match="of here, which has 50"):
            splits.span(split, 50, "here")
    assert splits.span("train[:51]", 50, "x", endless=True) == (0, 51)
    for split in ("train[5]", "train[", "", "train[::2]", "train[a:]"):
        with pytest.raises(ValueError, match="is not a split"):
            splits.span(split, 50, "x")


def test_validation_may_have_another_name():
    assert splits.resolve("validation", ("train", "test"), "x") == "test"
    assert splits.resolve("test", ("train", "validation", "test"), "x") == "test"
    with pytest.raises(ValueError, match="no split 'trian'; it has test, train. Did you mean 'tra"):
        splits.resolve("trian", ("train", "test"), "x")
