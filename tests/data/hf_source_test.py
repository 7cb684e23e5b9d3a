"""Data sets through the `datasets` library, from folders as it writes them, without a network."""

import pickle

import cv2
import numpy as np
import pytest

from fsq_jax.data import hf_source
from fsq_jax.data.decode import RecordError
from fsq_jax.data.open import open_dataset
from fsq_jax.runtime.user_error import UserError

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    datasets.disable_progress_bars()


def picture(value):
    return cv2.imencode(".png", np.full((6, 8, 3), value, np.uint8))[1].tobytes()


def toy(values, broken=()):
    features = datasets.Features(
        image=datasets.Image(),
        label=datasets.ClassLabel(names=["a", "b"]),
        text=datasets.Value("string"),
    )
    rows = [{"bytes": picture(v)[: 30 if v in broken else None], "path": None} for v in values]
    columns = {"image": rows, "label": [v % 2 for v in values], "text": ["x"] * len(values)}
    return datasets.Dataset.from_dict(columns, features=features)


def test_what_datasets_saved_and_what_it_loads(tmp_path):
    both = datasets.DatasetDict({"train": toy(range(7)), "validation": toy([9, 8])})
    both.save_to_disk(str(tmp_path / "saved"))
    (tmp_path / "hub").mkdir()
    for split in both:
        both[split].to_parquet(str(tmp_path / "hub" / f"{split}-00000-of-00001.parquet"))
    for spec in (f"hf:{tmp_path}/saved", f"hf:{tmp_path}/hub"):
        source = open_dataset(spec, "train", 8)
        assert len(source) == 7 and source.class_names == ("a", "b")
        assert set(source.splits) == {"train", "validation"}
        assert source[5]["label"] == 1 and (source[5]["image"] == 5).all()
        copy = pickle.loads(pickle.dumps(open_dataset(f"{spec}:train[2:]", "train[:3]", 8)))
        assert len(copy) == 3 and (copy[2]["image"] == 4).all()
        assert open_dataset(spec, "validation", 8)[0]["label"] == 1


def test_what_cannot_be_had(tmp_path):
    with pytest.raises(UserError, match="^hf:nobody/nothing cannot be loaded"):
        open_dataset("hf:nobody/nothing", "train", 8)
    datasets.Dataset.from_dict({"text": ["x"]}).save_to_disk(str(tmp_path / "text"))
    with pytest.raises(UserError, match="has no column of images; it has text"):
        open_dataset(f"hf:{tmp_path}/text", "train", 8)
    toy(range(3), broken=[1]).save_to_disk(str(tmp_path / "broken"))
    source = open_dataset(f"hf:{tmp_path}/broken", "train", 8)
    with pytest.raises(
        RecordError, match="Record 1 of hf:.*/broken train is not a whole, readable"
    ):
        source[1]


def test_without_the_library(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(UserError, match=r"hf: needs datasets; pip install 'fsq_jax\[hf\]'"):
        hf_source.open_source("x", "train")
