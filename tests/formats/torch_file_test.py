import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

from fsq_jax.formats import torch_file

REFERENCE = Path(__file__).parent.parent / "features" / "reference"


@pytest.mark.parametrize("layout", ["legacy", "zip"])
def test_reads_what_torch_saved(layout):
    tensors = torch_file.read(REFERENCE / f"{layout}.pth")
    expected = np.load(REFERENCE / "tensors.npz")
    assert sorted(tensors) == sorted(expected)
    for name, array in tensors.items():
        np.testing.assert_array_equal(array.astype(np.float32), expected[name])
        assert array.shape == expected[name].shape and array.flags.c_contiguous
    dtypes = {"half": "float16", "bfloat16": "bfloat16", "bytes": "uint8", "flags": "bool"}
    assert {name: str(tensors[name].dtype) for name in dtypes} == dtypes


@pytest.mark.parametrize("layout", ["legacy", "zip"])
def test_every_truncation_is_one_value_error(layout, tmp_path):
    data = (REFERENCE / f"{layout}.pth").read_bytes()
    path = tmp_path / "cut.pth"
    for size in range(0, len(data), 13):
        path.write_bytes(data[:size])
        with pytest.raises(ValueError, match="cut.pth cannot be read"):
            torch_file.read(path)


class Attack:
    def __reduce__(self):
        return os.system, ("touch broken-into",)


def zip_file(path, payload, **entries):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", payload)
        for name, data in entries.items():
            archive.writestr(f"archive/data/{name}", data)


def legacy_file(path, payload):
    head = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}]
    path.write_bytes(b"".join(pickle.dumps(x, 2) for x in head) + payload + pickle.dumps([], 2))


@pytest.mark.parametrize("write", [zip_file, legacy_file])
def test_refuses_a_call_and_names_it(write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "attack.pth"
    write(path, pickle.dumps({"x": Attack()}, 2))
    with pytest.raises(ValueError, match=r"(posix|os|nt)\.system"):
        torch_file.read(path)
    assert not (tmp_path / "broken-into").exists()


def test_refuses_a_bare_pickle_that_calls(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "attack.pth"
    path.write_bytes(pickle.dumps(Attack()))
    with pytest.raises(ValueError, match="system"):
        torch_file.read(path)
    assert not (tmp_path / "broken-into").exists()


@pytest.mark.parametrize("name", ["builtins.eval", "torch.nn.modules.linear.Linear", "torch.load"])
def test_admits_no_other_name(name, tmp_path):
    path = tmp_path / "x.pth"
    module, _, attribute = name.rpartition(".")
    zip_file(path, f"\x80\x02c{module}\n{attribute}\n.".encode("latin1"))
    with pytest.raises(ValueError, match=name):
        torch_file.read(path)


def tensor_pickle(offset, shape, strides):
    """Returns the pickle of {"x": a view of one storage of four floats}."""

    def ints(values):
        return "(" + "".join(f"I{v}\n" for v in values) + "t"

    storage = "(S'storage'\nctorch\nFloatStorage\nS'0'\nS'cpu'\nI4\ntQ"
    call = f"ctorch._utils\n_rebuild_tensor_v2\n({storage}I{offset}\n{ints(shape)}{ints(strides)}"
    return f"(dS'x'\n{call}I00\nNtRs.".encode("latin1")


def test_reads_a_view(tmp_path):
    path = tmp_path / "x.pth"
    zip_file(path, tensor_pickle(1, (3,), (1,)), **{"0": np.arange(4, dtype="<f4").tobytes()})
    np.testing.assert_array_equal(torch_file.read(path)["x"], [1, 2, 3])


@pytest.mark.parametrize(
    "view", [(2, (3,), (1,)), (0, (2, 2), (3, 1)), (-1, (1,), (1,)), (0, (1 << 40,), (0,))]
)
def test_refuses_views_outside_the_storage(view, tmp_path):
    path = tmp_path / "x.pth"
    zip_file(path, tensor_pickle(*view), **{"0": bytes(16)})
    with pytest.raises(ValueError, match="tensor x reaches outside its storage of 4"):
        torch_file.read(path)


def test_refuses_a_file_without_tensors(tmp_path):
    path = tmp_path / "x.pth"
    zip_file(path, pickle.dumps({"epoch": 3}, 2))
    with pytest.raises(ValueError, match="no tensors by name"):
        torch_file.read(path)


def test_unwraps_the_entry_state_dict(tmp_path):
    path = tmp_path / "x.pth"
    inner = tensor_pickle(0, (4,), (1,))[:-1]
    payload = b"(dS'epoch'\nI3\nsS'state_dict'\n" + inner + b"s."
    zip_file(path, payload, **{"0": np.arange(4, dtype="<f4").tobytes()})
    assert list(torch_file.read(path)) == ["x"]


def test_state_dict_of_npz_and_missing_files(tmp_path):
    np.savez(tmp_path / "x.npz", a=np.arange(3))
    np.testing.assert_array_equal(torch_file.read_state_dict(tmp_path / "x.npz")["a"], [0, 1, 2])
    with pytest.raises(ValueError, match="no file of weights at .*missing.pth"):
        torch_file.read_state_dict(tmp_path / "missing.pth")
    np.savez(tmp_path / "objects.npz", a=np.array([Attack()]))
    with pytest.raises(ValueError, match="objects.npz cannot be read"):
        torch_file.read_state_dict(tmp_path / "objects.npz")
