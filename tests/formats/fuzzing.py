"""Damages small files of every format, and says what their readers make of it.

    python -m tests.formats.fuzzing SEED MUTANTS

prints a JSON list of what should not have been: any exception but a `UserError`, more than two
seconds of a processor, or more memory than twice the file and what small files may take anyway.
It runs in a process of its own, whose memory is bounded, so that what kills it is noticed as well.
"""

import faulthandler
import functools
import io
import json
import os
import pathlib
import random
import resource
import signal
import sys
import tempfile
import time
import tracemalloc
import zipfile

import numpy as np

from fsq_jax.data.open import open_dataset
from fsq_jax.formats import archive, numpy_file, torch_file, weights_file
from fsq_jax.runtime import manifest, metric_writer, workdir
from fsq_jax.runtime.user_error import UserError
from fsq_jax.scoring import image_sets, reference_file

SECONDS, MEMORY = 2.0, archive.FREE + (8 << 20)
_ADDRESS_SPACE = 16 << 30
_TORCH = pathlib.Path(__file__).parent.parent / "features" / "reference"
_VALUES = (None, [], {}, "x", -1, 1.5, True, 2**70, [[[]]], {"a": {"b": 1}}, [1, "2"], 1e999)


def _json(**values) -> bytes:
    return json.dumps(values).encode()


def _npy(array) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def _npz(save=np.savez, **arrays) -> bytes:
    buffer = io.BytesIO()
    save(buffer, **arrays)
    return buffer.getvalue()


def _written(write) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        write(os.path.join(folder, "x"))
        return pathlib.Path(folder, "x").read_bytes()


def _images(path):
    return {"images": np.concatenate(list(image_sets.open_images(path).blocks(4)))}


def _records(kind, path):
    source = open_dataset(f"{kind}:{os.path.dirname(os.path.dirname(path))}", "train", 4)
    return [source[i] for i in range(len(source))]


def _folder(path, name):
    """The file at `path` in a folder of its own, under the name that its reader looks for."""
    folder = os.path.join(os.path.dirname(path), "folder")
    os.makedirs(folder, exist_ok=True)
    os.replace(path, os.path.join(folder, name))
    return folder


_IMAGES = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
_TREE = {"a": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3)}, "b": np.arange(4)}
_FLAT = {"params/a/kernel": _TREE["a"]["kernel"], "params/b": _TREE["b"]}
_TOLD = json.dumps({"reference": {"name": "x", "num_images": 9}, "features": {"name": "y"}})
_META = _json(
    class_names=["a", "b"], codebook_size=12, num_classes=2, fingerprint="x", views=1, seed=0
)
_ARRAYS = {"image.npy": _npy(_IMAGES), "label.npy": _npy(np.array([0, 1])), "meta.json": _META}
_TOKENS = {
    "tokens.npy": _npy(np.ones((2, 1, 4), np.int32)), "labels.npy": _npy(np.array([0, 1])),
    "meta.json": _META,
}  # fmt: skip


def _in_data_set(kind, others, name, path):
    """Reads a data set in which one file is the one at `path`."""
    folder = os.path.join(os.path.dirname(path), "set", "train")
    os.makedirs(folder, exist_ok=True)
    for other, data in others.items():
        pathlib.Path(folder, other).write_bytes(data)
    os.replace(path, os.path.join(folder, name))
    return _records(kind, os.path.join(folder, name))


def formats() -> dict[str, tuple[bytes, object]]:
    """{format: (a whole file, its reader, which takes a path)}."""
    config = _json(stage="maskgit_tokenizer", steps=3, model={"width": 8, "levels": [8, 5]})
    results = _json(fid={"value": 1.5, "protocol": {"name": "adm"}, "step": 3})
    lines = b"".join(_json(step=i, split="train", loss=0.5) + b"\n" for i in range(3))
    sums = {"files": {"state/x": {"bytes": 1, "sha256": "ab"}}, "metrics": {"psnr": 1.0}}
    weights = [  # what is read as weights
        ("npz", _npz(**_FLAT)), ("npz_compressed", _npz(np.savez_compressed, **_FLAT)),
        ("msgpack", _written(lambda path: weights_file.write_msgpack(path, _TREE))),
        ("safetensors", _written(lambda p: weights_file.write_safetensors(p, _FLAT, {"a": "b"}))),
    ]  # fmt: skip
    found = {name: (data, lambda path: weights_file.read(path)[0]) for name, data in weights}
    for layout in ("legacy", "zip"):
        found[f"pth_{layout}"] = ((_TORCH / f"{layout}.pth").read_bytes(), torch_file.read)
    found |= {
        "state_dict_npz": (
            _npz(a=np.arange(4.0)), lambda path: torch_file.read_state_dict(pathlib.Path(path))
        ),
        "npy": (_npy(np.arange(12.0).reshape(3, 4)), lambda p: np.array(numpy_file.open_npy(p))),
        "images": (_npz(arr_0=_IMAGES), _images),
        "reference": (
            _npz(mu=np.zeros(4), sigma=np.eye(4), count=9, protocol=_TOLD), reference_file.load
        ),
        "config": (config, lambda p: workdir.load_config(_folder(p, "config.json"))),
        "results": (results, lambda p: workdir.load_results(_folder(p, "results.json"))),
        "metrics": (lines, lambda p: metric_writer.read_metrics(_folder(p, "metrics.jsonl"))),
        "manifest": (json.dumps(sums).encode(), lambda p: manifest.read(_folder(p, manifest.NAME))),
    }  # fmt: skip
    for kind, files in (("arrays", _ARRAYS), ("tokens", _TOKENS)):
        for name, data in files.items():
            reader = functools.partial(_in_data_set, kind, files, name)
            found[f"{kind}_{name}"] = (data, reader)
    return found


def mutant(data: bytes, rng: random.Random) -> bytes:
    """A file that is damaged somewhere, or of which a part says something else."""
    if data[:2] == b"PK" and rng.random() < 0.5:
        return _other_member(data, rng)
    if data[:1] == b"{" and rng.random() < 0.5:
        return _other_value(data, rng)
    damaged = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 3))):
        place, kind = rng.randrange(len(damaged) + 1), rng.randrange(7)
        end = min(len(damaged), place + rng.choice((1, 2, 4, 8, 64)))
        if kind == 0 and place < len(damaged):
            damaged[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            damaged[place:end] = bytes([rng.choice((0, 1, 127, 128, 255))]) * (end - place)
        elif kind == 2:
            del damaged[place:]
        elif kind == 3:
            damaged[place:place] = rng.randbytes(rng.randrange(1, 9))
        elif kind == 4:
            del damaged[place:end]
        elif kind == 5:
            damaged[place:end] = str(rng.choice((-1, 2**31, 2**40, 2**70))).encode()
        else:
            damaged[place:place] = damaged[end : end + 64]
    return bytes(damaged)


def _other_member(data: bytes, rng: random.Random) -> bytes:
    """A zip archive, whole, of which one member is damaged."""
    with zipfile.ZipFile(io.BytesIO(data)) as whole:
        members = {name: whole.read(name) for name in whole.namelist()}
    name = rng.choice(sorted(members))
    members[name] = mutant(members[name], rng)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", rng.choice((0, zipfile.ZIP_DEFLATED))) as written:
        for name, content in members.items():
            written.writestr(name, content)
    return buffer.getvalue()


def _other_value(data: bytes, rng: random.Random) -> bytes:
    """JSON, of which one value, or one name, is another."""
    lines = data.splitlines()
    try:
        value = json.loads(lines[0])
    except ValueError:
        return data[:-1]
    parent, node = None, value
    while isinstance(node, (dict, list)) and node and (parent is None or rng.random() < 0.7):
        keys = sorted(node) if isinstance(node, dict) else range(len(node))
        parent, key = node, rng.choice(keys)
        node = parent[key]
    if isinstance(parent, dict) and rng.random() < 0.3:
        parent[rng.choice(("", "a.b", "__class__", "items", "x" * 9999))] = parent.pop(key)
    else:
        parent[key] = rng.choice(_VALUES)
    return json.dumps(value).encode() + b"\n" + b"\n".join(lines[1:])


def attempt(reader, data: bytes) -> str:
    """What is wrong with how a reader took a file; "" where it read it, or refused it well."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "strange.file")
        pathlib.Path(path).write_bytes(data)
        tracemalloc.reset_peak()
        before, started, problem = tracemalloc.get_traced_memory()[0], time.process_time(), ""
        try:
            reader(path)
        except UserError as error:
            if folder not in str(error) or "\n" in str(error):
                problem = f"no sentence with the file's name: {str(error)[:200]!r}"
        except Exception as error:
            problem = f"{type(error).__name__}: {str(error)[:200]}"
        seconds = time.process_time() - started
        memory = tracemalloc.get_traced_memory()[1] - before
    if seconds > SECONDS:
        problem += f" {seconds:.1f} s"
    if memory > 2 * len(data) + MEMORY:
        problem += f" {memory} bytes of memory for a file of {len(data)}"
    return problem


def main(seed: int, mutants: int) -> list[str]:
    problems = []
    for name, (data, reader) in formats().items():
        if problem := attempt(reader, data):
            problems.append(f"{name}, whole: {problem}")
        for number in range(mutants):
            rng = random.Random(f"{seed} {name} {number}")
            changed = mutant(data, rng)
            print(name, number, file=sys.stderr)
            if problem := attempt(reader, changed):
                problems.append(f"{name}, mutant {number}: {problem}")
    return problems


if __name__ == "__main__":
    faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_SPACE, _ADDRESS_SPACE))
    signal.alarm(300)
    tracemalloc.start()
    print(json.dumps(main(int(sys.argv[1]), int(sys.argv[2]))))
