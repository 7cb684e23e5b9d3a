"""Files of arrays by path: prefixes, old names, stored types, and files of other kinds."""

import zipfile

import ml_dtypes
import numpy as np
import pytest

from fsq_jax.pretrained import npz_tree

ONE = np.ones((2, 3), np.float32)


def saved(path, **arrays):
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize("prefix", ["", "params/", "opt/target/"])
def test_prefixes_and_old_names_go(tmp_path, prefix):
    path = saved(tmp_path / "a.npz", **{
        f"{prefix}Encoder/kernel": ONE, f"{prefix}bias": ONE[0], "state/counts": ONE[:, 0],
    })
    tree = npz_tree.read(path)
    assert set(npz_tree.flatten(tree)) == {
        "params/encoder/kernel", "params/bias", "codebook_state/counts"
    }
    np.testing.assert_array_equal(tree["params"]["encoder"]["kernel"], ONE)


def test_numbers_count_within_their_kind(tmp_path):
    old = ("LayerNorm_0", "Attention_1", "LayerNorm_2", "Mlp_3/Dense_0", "Mlp_3/Dense_1", "a_10",
           "a_9", "LayerNorm7")
    values = {name: np.full(1, i, np.float32) for i, name in enumerate(old)}
    flat = npz_tree.flatten(npz_tree.read(saved(tmp_path / "a.npz", **values))["params"])
    assert {name: int(x[0]) for name, x in flat.items()} == {
        "LayerNorm_0": 0, "Attention_0": 1, "LayerNorm_1": 2, "Mlp_0/Dense_0": 3,
        "Mlp_0/Dense_1": 4, "a_1": 5, "a_0": 6, "LayerNorm7": 7,
    }


def test_all_floats_become_float32(tmp_path):
    half = ONE.astype(ml_dtypes.bfloat16)
    path = saved(tmp_path / "a.npz", a=half, b=ONE.astype(np.float16), c=np.arange(3))
    assert np.load(path)["a"].dtype.kind == "V"  # what NumPy makes of it
    tree = npz_tree.read(path)["params"]
    assert {name: x.dtype.name for name, x in tree.items()} == {
        "a": "float32", "b": "float32", "c": "int64"
    }
    np.testing.assert_array_equal(tree["a"], ONE)


def wrong_files(folder):
    """[(a file, what is said of it)]"""
    good = saved(folder / "good.npz", a=np.random.default_rng(0).normal(size=999))
    cut, image, objects, archive, array = (
        folder / name for name in ("cut.npz", "image.npz", "objects.npz", "zip.npz", "one.npz")
    )
    cut.write_bytes(good.read_bytes()[:1000])
    image.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(99))
    np.savez(objects, a=np.array([{"a": 1}], dtype=object))
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("notes.txt", "hello")
    with open(array, "wb") as file:
        np.save(file, ONE)
    return [
        (folder / "none.npz", "There is no file"),
        (cut, r"truncated or damaged \(1000 bytes; BadZipFile\)"),
        (image, "begins with b'.x89PNG' and so is no zip archive"),
        (array, "begins with b'.x93NUM' and so is no zip archive"),
        (objects, "holds Python objects, which are never loaded"),
        (archive, "is a zip archive of something else"),
    ]


def test_other_files_get_one_sentence_each(tmp_path):
    for path, message in wrong_files(tmp_path):
        with pytest.raises(ValueError, match=message) as error:
            npz_tree.read(path)
        text = str(error.value)
        assert text.endswith("; expected a .npz file of arrays by path.") and "\n" not in text
        assert str(path) in text


def test_bytes_that_were_changed_are_noticed(tmp_path):
    path = saved(tmp_path / "a.npz", a=np.zeros(999))
    data = bytearray(path.read_bytes())
    data[500] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="truncated or damaged"):
        npz_tree.read(path)


def test_differences_are_named():
    expected = {"a": {"b": ONE}, "c": ONE}
    for tree, message in [
        ({"a": {"b": ONE}}, r"x lacks c \(2, 3\), which a net has"),
        (expected | {"d": ONE[0]}, r"x has d \(3,\), which a net lacks"),
        (expected | {"c": ONE.T}, r"x: c is float32 of shape \(3, 2\).*\(2, 3\) in a net"),
        (expected | {"c": ONE.astype(int)}, "c is int64"),
    ]:
        with pytest.raises(ValueError, match=message):
            npz_tree.check_shapes("x", "a net", tree, expected)
    npz_tree.check_shapes("x", "a net", expected, expected)
