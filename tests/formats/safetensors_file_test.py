import json

import ml_dtypes
import numpy as np
import pytest

from fsq_jax.formats import safetensors_file

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
    safetensors_file.write(tmp_path / "x.safetensors", ARRAYS, METADATA)
    return tmp_path / "x.safetensors"


def test_round_trip(path):
    arrays, metadata = safetensors_file.read(path)
    assert metadata == METADATA
    assert arrays.keys() == ARRAYS.keys()
    for name, array in arrays.items():
        assert array.dtype == np.asarray(ARRAYS[name]).dtype
        np.testing.assert_array_equal(array, ARRAYS[name])
    assert int.from_bytes(path.read_bytes()[:8], "little") % 8 == 0  # arrays are aligned


def test_the_package_of_that_name_reads_and_writes_the_same(path, tmp_path):
    package = pytest.importorskip("safetensors.numpy")
    reader = pytest.importorskip("safetensors").safe_open
    arrays = {name: array for name, array in ARRAYS.items() if name != "b/half"}  # NumPy has none
    safetensors_file.write(path, arrays, METADATA)
    theirs = package.load_file(path)
    assert theirs.keys() == arrays.keys()
    for name, array in theirs.items():
        assert array.dtype == np.asarray(arrays[name]).dtype
        np.testing.assert_array_equal(array, arrays[name])
    with reader(path, "numpy") as file:
        assert file.metadata() == METADATA
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    package.save_file(arrays, tmp_path / "theirs", METADATA)
    ours, metadata = safetensors_file.read(tmp_path / "theirs")
    assert metadata == METADATA
    for name, array in arrays.items():
        np.testing.assert_array_equal(ours[name], array)


def with_header(path, change) -> bytes:
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    change(header)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[start:]


@pytest.mark.parametrize("damage", [
    lambda path: path.read_bytes()[:-3],
    lambda path: with_header(path, lambda h: h["a"].update(shape=[4])),
    lambda path: with_header(path, lambda h: h["a"].update(dtype="X9")),
    lambda path: with_header(path, lambda h: h["a"].pop("shape")),
    lambda path: with_header(path, lambda h: h["a"].update(data_offsets=[-12, 0])),
    lambda path: (9).to_bytes(8, "little") + b"{not json",
])
def test_damage_is_a_sentence(path, damage):
    path.write_bytes(damage(path))
    with pytest.raises(ValueError, match="cannot be read as .safetensors: it is truncated, damag"):
        safetensors_file.read(path)
