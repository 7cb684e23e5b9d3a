"""Files from strangers: hundreds of damaged ones, and some made to hang, crash or fill up.

Each gets one sentence with its name, within two seconds and about twice its size of memory.
"""

import io
import json
import os
import pickle
import socket
import struct
import time
import tracemalloc
import zipfile

import msgpack
import numpy as np
import pytest

from fsq_jax.data.open import open_dataset
from fsq_jax.formats import numpy_file, torch_file, weights_file
from fsq_jax.runtime import metric_writer, workdir
from fsq_jax.runtime.user_error import UserError
from fsq_jax.scoring import image_sets, reference_file
from tests import programs, tiny
from tests.formats import fuzzing


def test_damaged_files_of_every_format():
    """A process of its own: what kills it, or hangs, is noticed as well."""
    done = programs.run("tests.formats.fuzzing", "0", "25")
    assert done.returncode == 0, done.stderr[-1000:]
    assert json.loads(done.stdout) == []


def zipped(members, compression=zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def npy(descr="<f4", shape=(4,), data=b"", header="") -> bytes:
    header = header or f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}, }}"
    text = header.encode() + b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


def pth(*tensors, extra=b"", size=4, **members) -> bytes:
    """A torch file of {name: tensor of n floats} over one storage of `size` floats."""
    storage = f"(S'storage'\nctorch\nFloatStorage\nS'0'\nS'cpu'\nI{size}\ntQ"
    items = "".join(
        f"S'{name}'\nctorch._utils\n_rebuild_tensor_v2\n({storage}I0\n(I{n}\nt(I1\ntI00\nNtRs"
        for name, n in tensors
    )
    payload = b"(d" + items.encode() + extra + b"."
    return zipped({"a/data.pkl": payload, "a/data/0": bytes(4 * size)} | members)


def doubled(times: int) -> bytes:
    """Pickles a tuple of two of a tuple of two of ..."""
    steps = (b"h%ch%c\x86q%c0" % (i, i, i + 1) for i in range(times))
    return b"K\x01\x85q\x000" + b"".join(steps) + b"h%c" % times


def nested_msgpack(depth: int, length: int) -> bytes:
    """Lists in lists, each of which says that it has as many items as the file has bytes."""
    return b"\x81\xa6params" + (b"\xdd" + struct.pack(">I", length)) * depth + b"\xc0" * length


DEEP_TUPLE = b"\x80\x02})" + b"\x85" * 100_000 + b"K\x01s."
SIZES = b'{"a":{"dtype":"F32","shape":[%s],"data_offsets":[0,8]}}'


def safetensors(header: bytes, data=b"12345678") -> bytes:
    return len(header).to_bytes(8, "little") + header + data


def weights(path):
    return weights_file.read(str(path))[0]


def images(path):
    return list(image_sets.open_images(str(path)).blocks(8))


BOMB = bytes(1 << 26)  # which a zip archive holds in 65 kB
HOSTILE = {  # name: (the file, or what makes it where that takes long, its reader, what is said)
    "a key that recurses": (zipped({"a/data.pkl": DEEP_TUPLE}), torch_file.read, "tuple for a key"),
    "a key whose hash never ends": (
        zipped({"a/data.pkl": b"\x80\x02}" + doubled(60) + b"K\x01s."}), torch_file.read,
        "tuple for a key",
    ),
    "a set of them": (
        zipped({"a/data.pkl": b"\x80\x04\x8f(" + doubled(60) + b"\x90."}), torch_file.read,
        "tuple for a key",
    ),
    "a protocol that is never printed": (
        pickle.dumps(0x1950A86A20F9469CFC6C, 2) + b"\x80\x02" + doubled(60) + b"."
        + pickle.dumps({}, 2), torch_file.read, "its protocol is tuple",
    ),
    "a storage's name that is never printed": (
        zipped({"a/data.pkl": b"\x80\x02(X\x07\0\0\0storagectorch\nFloatStorage\n" + doubled(60)
                + b"X\x03\0\0\0cpuK\x04tQ."}), torch_file.read, "without a name",
    ),
    "a memo of gigabytes": (
        zipped({"a/data.pkl": b"\x80\x02Nr" + struct.pack("<I", 2**28) + b"."}), torch_file.read,
        "no tensors",
    ),
    "a text of gigabytes": (
        zipped({"a/data.pkl": b"\x80\x02X" + struct.pack("<I", 2**31) + b"."}), torch_file.read,
        "truncated or damaged",
    ),
    "a million instructions": (
        zipped({"a/data.pkl": b"\x80\x02" + b"N0" * 600_000 + b"N."}), torch_file.read,
        "instructions",
    ),
    "our own function, changed": (
        zipped({"a/data.pkl": b"ctorch._utils\n_rebuild_tensor\n(dS'x'\nI1\nsb."}),
        torch_file.read, "damaged",
    ),
    "a storage larger than it says": (
        lambda: pth(("x", 1), **{"a/data/0": BOMB}), torch_file.read, "unpacks to|bytes, not 16",
    ),
    "3,000 tensors over one storage": (
        pth(*((f"x{i}", 1 << 20) for i in range(3000)), size=1 << 20), torch_file.read, "share",
    ),
    "a byte order": (
        pth(("x", 4), **{"a/byteorder": b"middle"}), torch_file.read, "byte order is b'middle'",
    ),
    "an .npz that unpacks to a lot": (lambda: zipped({"a.npy": BOMB}), weights, "unpacks to"),
    "the same, as images": (
        lambda: zipped({"arr_0.npy": npy("|u1", (2, 4096, 4096, 2)) + BOMB}), images,
        "images are uint8",
    ),
    "images of a lot": (
        lambda: zipped({"arr_0.npy": npy("|u1", (4, 4096, 4096)) + BOMB}), images, "unpacks to",
    ),
    "an array of a terabyte": (zipped({"a.npy": npy(shape=(2**40,))}), weights, "and has 0 of"),
    "more than can be counted": (zipped({"a.npy": npy(shape=(2**70,))}), weights, "header is"),
    "no bytes in many rows": (zipped({"a.npy": npy(shape=(2**60, 0))}), weights, "no file can"),
    "a shape below zero": (zipped({"a.npy": npy(shape=(-1,))}), weights, "header is"),
    "a header that opens a text": (
        zipped({"a.npy": npy(header="{'descr': '''")}), weights, "header is",
    ),
    "a header of brackets": (zipped({"a.npy": npy(header="(" * 9000)}), weights, "header is"),
    "Python objects": (
        zipped({"a.npy": npy("|O", (1,), pickle.dumps([1]))}), weights, "never loaded",
    ),
    "two members of one name": (
        zipped({"a.npy": npy(data=bytes(16)), "b.npy": npy(data=bytes(16))}).replace(b"b.npy",
                                                                                   b"a.npy"),
        weights, "same name",
    ),
    "lists of a msgpack file in each other": (nested_msgpack(900, 100_000), weights, "longer or"),
    "a list of 4 billion": (b"\x81\xa6params\xdd\xff\xff\xff\xff", weights, "longer or"),
    "maps in maps": (b"\x81\xa6params" + b"\x81\xa1a" * 5000 + b"\xc0", weights, "longer or"),
    "safetensors of a terabyte": (safetensors(SIZES % b"1099511627776"), weights, "safetensors"),
    "safetensors of too many": (safetensors(SIZES % b"1e30"), weights, "safetensors"),
    "safetensors of 100 dimensions": (
        safetensors(SIZES % b",".join([b"1"] * 99 + [b"2"])), weights, "safetensors",
    ),
    "a reference of a terabyte": (
        zipped({"mu.npy": npy(shape=(2**40,)), "sigma.npy": npy()}), reference_file.load,
        "and has 0",
    ),
    "an .npy of a terabyte": (npy(shape=(2**40,)), numpy_file.open_npy, "and has 0"),
    "an empty .npy": (b"", numpy_file.open_npy, "it is empty"),
    "nothing": (b"", torch_file.read, "it is empty"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files(name, tmp_path):
    data, reader, message = HOSTILE[name]
    data = data() if callable(data) else data
    path = tmp_path / ("x.npz" if data[:2] == b"PK" and reader is not torch_file.read else "x")
    path.write_bytes(data)
    started = time.process_time()
    with pytest.raises(UserError, match=message) as caught:
        reader(path)
    seconds = time.process_time() - started
    assert seconds < fuzzing.SECONDS
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    if seconds < 0.2:  # tracing takes ten times as long
        tracemalloc.start()
        try:
            with pytest.raises(UserError):
                reader(path)
            assert tracemalloc.get_traced_memory()[1] < 2 * len(data) + fuzzing.MEMORY
        finally:
            tracemalloc.stop()


READERS = {
    "torch": torch_file.read, "weights": weights, "images": images, "npy": numpy_file.open_npy,
    "reference": reference_file.load,
    "config.json": lambda path: workdir.load_config(str(path.parent)),
    "results.json": lambda path: workdir.load_results(str(path.parent)),
    "metrics.jsonl": lambda path: metric_writer.read_metrics(str(path.parent)),
}  # fmt: skip


@pytest.mark.parametrize("kind", ["pipe", "socket", "device", "folder"])
@pytest.mark.parametrize("name", READERS)
def test_only_plain_files_are_opened(name, kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / name
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        socket.socket(socket.AF_UNIX).bind(name)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    with pytest.raises(UserError, match=f"a {kind}|holds no images"):
        READERS[name](path)


@pytest.mark.parametrize("text, message", [
    ("[" * 10**5, "nested too deeply"), ('{"a": ' * 60 + "1" + "}" * 60, "nested too deeply"),
    ("9" * 5000, "not readable as JSON"), ('{"a": "\\ud800"}', "half of a surrogate"),
    ("[" + "1," * 2_100_000 + "1]", "more than 2000000 values"), (" " * (17 << 20), "at most"),
    (b"\xff\xfe{", "not readable as JSON"), ("", "not readable as JSON"), ("null", "is null"),
    ('{"fid": 3}', "fid is an integer"), ('{"fid": {"value": 1}}', "lacks fid.protocol, fid.step"),
    ('{"fid": {"value": "1", "protocol": {}, "step": 1}}', "fid.value is a text"),
    ('{"fid": {"value": true, "protocol": {}, "step": 1}}', "fid.value is true or false"),
    ('{"fid": {"value": 1, "protocol": {}, "step": 1.5}}', "fid.step is a number"),
])  # fmt: skip
def test_json_is_bounded_and_of_the_expected_types(text, message, tmp_path):
    data = text if isinstance(text, bytes) else text.encode()
    (tmp_path / "results.json").write_bytes(data)
    with pytest.raises(UserError, match=f"results.json.*{message}"):
        workdir.load_results(str(tmp_path))


@pytest.mark.parametrize("content", ['{"a": ', "[]", '{"fid": {"step": 1}}'])
def test_damaged_results_do_not_lose_what_was_just_evaluated(content, tmp_path, capsys):
    (tmp_path / "results.json").write_text(content)
    new = {"psnr": {"value": 3.0, "protocol": {}, "step": 7}}
    workdir.save_results(str(tmp_path), new)
    assert workdir.load_results(str(tmp_path)) == new
    assert (tmp_path / "results.json.damaged").read_text() == content
    said = capsys.readouterr().err
    assert "results.json.damaged" in said and "holds the new results alone" in said


def test_a_full_disk_names_the_file(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device: '.*config.json'"):
        workdir.save_config(str(tmp_path), tiny.tokenizer())
    assert not list(tmp_path.iterdir())


def test_metrics_name_the_line(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "split": "train"}\n{"step": 2}\n{"st')
    with pytest.raises(UserError, match="metrics.jsonl, line 2, lacks split"):
        metric_writer.read_metrics(str(tmp_path))


def test_a_data_set_of_pipes_is_not_waited_for(tmp_path):
    for kind, name in (("arrays", "image.npy"), ("tokens", "tokens.npy")):
        folder = tmp_path / kind / "train"
        folder.mkdir(parents=True)
        files = fuzzing._ARRAYS if kind == "arrays" else fuzzing._TOKENS
        for other, data in files.items():
            (folder / other).write_bytes(data)
        (folder / name).unlink()
        os.mkfifo(folder / name)
        with pytest.raises(UserError, match=name):
            open_dataset(f"{kind}:{folder.parent}", "train", 4)


def test_what_is_whole_is_read(tmp_path):
    """The functions above make files that are right, too: it isn't they that are refused."""
    (tmp_path / "x.pth").write_bytes(pth(("x", 3), ("y", 4)))
    assert {k: v.shape for k, v in torch_file.read(tmp_path / "x.pth").items()} == {
        "x": (3,),
        "y": (4,),
    }
    numbers = np.arange(4, dtype="<f4").tobytes()
    (tmp_path / "x.npz").write_bytes(zipped({"a.npy": npy(data=numbers)}))
    np.testing.assert_array_equal(weights(tmp_path / "x.npz")["params"]["a"], np.arange(4))
    array = msgpack.packb(((2,), "float32", bytes(8)))
    tree = msgpack.packb({"params": {"a": msgpack.ExtType(1, array)}})
    (tmp_path / "x").write_bytes(tree)
    assert weights(tmp_path / "x")["params"]["a"].shape == (2,)
    (tmp_path / "y").write_bytes(
        safetensors(b'{"params/a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}')
    )
    assert weights(tmp_path / "y")["params"]["a"].shape == (2,)
