"""What is written is read back, by us and by the package of that name; damage is a sentence."""

import json

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from fsq_jax.formats import msgpack_file, weights_file
from fsq_jax.runtime.user_error import UserError

ARRAYS = {
    "b/half": np.arange(6, dtype=np.float32).reshape(2, 3).astype(ml_dtypes.bfloat16),
    "a": np.arange(3, dtype=np.int32),
    "scalar": np.float32(2.5),
    "empty": np.zeros((0, 4), np.float64),
    "transposed": np.arange(6, dtype=np.uint8).reshape(2, 3).T,
    "flag": np.array([True, False]),
}
METADATA = {"config": '{"stage": "tokenizer"}', "text": "ä"}


@pytest.fixture
def path(tmp_path):
    weights_file.write_safetensors(tmp_path / "x.safetensors", ARRAYS, METADATA)
    return tmp_path / "x.safetensors"


def test_round_trip(path):
    arrays, metadata = weights_file.read_safetensors(path)
    assert metadata == METADATA
    assert arrays.keys() == ARRAYS.keys()
    for name, array in arrays.items():
        assert array.dtype == np.asarray(ARRAYS[name]).dtype
        np.testing.assert_array_equal(array, ARRAYS[name])
    assert int.from_bytes(path.read_bytes()[:8], "little") % 8 == 0  # arrays are aligned


def test_the_package_of_that_name_reads_the_same(path):
    theirs = safetensors.numpy.load_file(path)
    assert theirs.keys() == ARRAYS.keys()
    for name, array in theirs.items():
        np.testing.assert_array_equal(array, ARRAYS[name])
    with safetensors.safe_open(path, "numpy") as file:
        assert file.metadata() == METADATA


def with_header(path, change) -> bytes:
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    change(header)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[start:]


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.read_bytes()[:-3],
        lambda path: with_header(path, lambda h: h["a"].update(shape=[4])),
        lambda path: with_header(path, lambda h: h["a"].update(dtype="X9")),
        lambda path: with_header(path, lambda h: h["a"].pop("shape")),
        lambda path: with_header(path, lambda h: h["a"].update(data_offsets=[-12, 0])),
        lambda path: with_header(path, lambda h: h["a"].update(shape=[2**40])),
        lambda path: with_header(path, lambda h: h["a"].update(dtype="F8_E4M3", shape=[12])),
        lambda path: with_header(path, lambda h: h["__metadata__"].update(config={})),
        lambda path: (9).to_bytes(8, "little") + b"{not json",
        lambda path: (2**60).to_bytes(8, "little") + b"{}",
    ],
)
def test_damage_is_a_sentence(path, damage):
    path.write_bytes(damage(path))
    with pytest.raises(UserError, match="cannot be read as .safetensors: it is truncated, damag"):
        weights_file.read_safetensors(path)


@pytest.mark.parametrize("write", [
    lambda path, arrays: weights_file.write_safetensors(path, arrays, {}),
    lambda path, arrays: np.savez(open(path, "wb"), **arrays),
])  # fmt: skip
@pytest.mark.parametrize("names", [("params/a", "params/a/b"), ("params/a/b", "params/a")])
def test_a_name_of_an_array_and_of_a_folder_is_refused(tmp_path, write, names):
    write(tmp_path / "x", {name: np.zeros(2, np.float32) for name in names})
    with pytest.raises(UserError, match="x holds an array 'params/a' and another one inside it"):
        weights_file.read(str(tmp_path / "x"))


def test_two_names_of_one_place_are_refused(tmp_path):
    arrays = {"opt/target/a": np.zeros(2, np.float32), "params/a": np.zeros(2, np.float32)}
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(UserError, match="'params/a' and another array of the same place"):
        weights_file.read(str(tmp_path / "x.npz"))


@pytest.mark.parametrize("name", ["a/b", "", 3])
def test_a_msgpack_name_that_is_no_plain_one_is_refused(tmp_path, name):
    msgpack_file.write(tmp_path / "x", {"params": {name: np.zeros(2, np.float32)}})
    with pytest.raises(UserError, match="expected a plain name"):
        weights_file.read(str(tmp_path / "x"))


def test_big_endian_and_fortran_arrays_are_read_right(tmp_path):
    array = np.arange(6, dtype=">f4").reshape(2, 3)
    np.savez(tmp_path / "x.npz", a=array, b=np.asfortranarray(array.astype("<f4")))
    params = weights_file.read(str(tmp_path / "x.npz"))[0]["params"]
    for name in ("a", "b"):
        np.testing.assert_array_equal(params[name], array)
        assert params[name].dtype == np.float32 and params[name].dtype.isnative
