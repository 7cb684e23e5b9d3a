"""Which shards a pattern means, and which split each is of."""

import pytest

from fsq_jax.data import shards, splits
from fsq_jax.runtime.user_error import UserError


@pytest.mark.parametrize(
    "pattern, expected",
    [
        ("a.tar", ["a.tar"]),
        ("s-{08..10}.tar", ["s-08.tar", "s-09.tar", "s-10.tar"]),
        ("{train,val}-{0..1}", ["train-0", "train-1", "val-0", "val-1"]),
        ("{a,b{0..1}}", ["a", "b0", "a", "b1"]),
    ],
)
def test_braces(pattern, expected):
    assert shards.expand_braces(pattern) == expected


@pytest.mark.parametrize("pattern", ["{3..1}", "{0..99999999}", "{x}"])
def test_braces_that_stand_for_nothing(pattern):
    with pytest.raises(UserError, match=r"in '\{.*\}'"):
        shards.expand_braces(pattern)


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def named(found):
    return {split: [file.name for file in files] for split, files in found.items()}


def test_folders_are_cut_by_the_names_of_files_and_folders(tmp_path):
    touch(
        tmp_path / "a", "in1k-validation-00.tar", "in1k-train-01.tar", "in1k-train-00.tar", "x.txt"
    )
    assert named(shards.find(str(tmp_path / "a"), "wds", (".tar",))) == {
        "train": ["in1k-train-00.tar", "in1k-train-01.tar"],
        "validation": ["in1k-validation-00.tar"],
    }
    touch(tmp_path / "b", "train/0.tar", "val/0.tar", "val/1.tar", ".hidden/train-3.tar")
    assert named(shards.find(str(tmp_path / "b"), "wds", (".tar",))) == {
        "train": ["0.tar"],
        "validation": ["0.tar", "1.tar"],
    }
    touch(tmp_path / "trained", "retest-0.tar", "1.tar")  # words within words say nothing
    assert list(shards.find(str(tmp_path / "trained"), "wds", (".tar",))) == ["train"]
    touch(tmp_path / "trained", "test-0.tar")
    with pytest.raises(
        UserError, match=r"(1|retest-0).tar says no split in its name and other files"
    ):
        shards.find(str(tmp_path / "trained"), "wds", (".tar",))


def test_patterns(tmp_path):
    touch(tmp_path, "s-0.tar", "s-1.tar", "s-3.tar")
    files = {"train": ["s-0.tar", "s-1.tar"]}
    assert named(shards.find(f"{tmp_path}/s-{{0..1}}.tar", "wds", (".tar",))) == files
    assert named(shards.find(f"{tmp_path}/s-[01].tar", "wds", (".tar",))) == files
    with pytest.raises(UserError, match=r"s-2.tar isn't there, of the files of wds:.*\{0..3\}"):
        shards.find(f"{tmp_path}/s-{{0..3}}.tar", "wds", (".tar",))
    with pytest.raises(UserError, match="s-2.tar and 2 others aren't there"):
        shards.find(f"{tmp_path}/s-{{0..5}}.tar", "wds", (".tar",))
    for pattern in ("t-*.tar", "nothing.tar"):
        with pytest.raises(UserError):
            shards.find(f"{tmp_path}/{pattern}", "wds", (".tar",))
    with pytest.raises(UserError, match="has no files that end in .parquet"):
        shards.find(str(tmp_path), "parquet", (".parquet",))


@pytest.mark.parametrize(
    "spec, expected",
    [
        ("wds:/d/s-{000..010}.tar", ("wds", "/d/s-{000..010}.tar", [])),
        ("wds:/d/s-*.tar:train[:10%]", ("wds", "/d/s-*.tar", ["train[:10%]"])),
        ("hf:owner/name", ("hf", "owner/name", [])),
        ("hf:owner/name:plain_text", ("hf", "owner/name:plain_text", [])),
        ("hf:owner/name:train", ("hf", "owner/name", ["train"])),
        ("hf:owner/name:v2:train[:9]", ("hf", "owner/name:v2", ["train[:9]"])),
    ],
)
def test_specs(spec, expected):
    assert splits.parse_spec(spec) == expected
