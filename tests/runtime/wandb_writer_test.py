"""The real W&B client, offline: what a run writes, and that a resumed one goes on in it."""

import glob
import json
import pathlib
import struct

import numpy as np
import pytest

from fsq_jax.runs.config import resolve_config
from fsq_jax.runtime import wandb_writer
from fsq_jax.runtime.metric_writer import MetricWriter
from fsq_jax.runtime.user_error import UserError
from tests import tiny


def records(workdir):
    """What all starts of a run have written into the client's own files, in order."""
    from wandb.proto import wandb_internal_pb2

    found = []
    for path in sorted(glob.glob(f"{workdir}/wandb/offline-run-*/*.wandb")):
        for data in read_log(pathlib.Path(path).read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            found.append(record)
    return found


def read_log(data, block=1 << 15, head=7):
    """The records of a file in LevelDB's log format, which begins with 7 bytes of W&B's own."""
    position, parts = head, []
    while position + head <= len(data):
        left = block - position % block
        if left < head:  # nothing begins where a header does not fit
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        position += head
        parts.append(data[position : position + length])
        position += length
        if kind in (1, 4):  # whole, or the last part
            yield b"".join(parts)
            parts = []


def test_scalars_pictures_and_config_go_to_one_run(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    config = tiny.tokenizer({"wandb.project": "tokenizers"}).to_dict()
    ids = []
    for step in (0, 2):  # the second goes on in the first one's workdir
        writer = MetricWriter(str(tmp_path), step=step, config=config)
        writer.scalars(step + 1, "train", {"loss": 0.5})
        writer.images(step + 1, {"reconstruction": np.zeros((2, 4, 4, 3))})
        writer.close()
        ids.append(json.loads((tmp_path / wandb_writer.FILE).read_text())["id"])
    written = records(tmp_path)
    runs = [record.run for record in written if record.HasField("run")]
    assert {run.run_id for run in runs} == set(ids) and len(set(ids)) == 1
    assert {run.project for run in runs} == {"tokenizers"}
    assert {run.display_name for run in runs} == {tmp_path.name}
    shown = {item.key: item.value_json for run in runs for item in run.config.update}
    assert json.loads(shown["quantizer"]) == {"name": "fsq", "levels": [4, 3]}, shown
    logged = [
        {
            "/".join(item.nested_key) or item.key: json.loads(item.value_json)
            for item in record.history.item
        }
        for record in written
        if record.HasField("history")
    ]
    losses = [(line["step"], line["train/loss"]) for line in logged if "train/loss" in line]
    assert losses == [(1, 0.5), (3, 0.5)]
    pictures = [line for line in logged if any("samples/reconstruction" in key for key in line)]
    assert [line["step"] for line in pictures] == [1, 3]


def test_what_is_missing_is_said_before_anything_starts(monkeypatch):
    with pytest.raises(UserError, match="needs a wandb.project"):
        resolve_config(tiny.tokenizer({"wandb.name": "mine"}))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'fsq_jax\[wandb\]'"):
        resolve_config(tiny.tokenizer({"wandb.project": "tokenizers"}))


def test_without_a_project_there_is_no_client(tmp_path):
    writer = MetricWriter(str(tmp_path), config=tiny.tokenizer().to_dict())
    writer.close()
    assert not (tmp_path / wandb_writer.FILE).exists()
