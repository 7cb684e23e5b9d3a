"""Decoded records on disk are what their source gives, whoever writes them."""

import json
import pickle

import cv2
import numpy as np
import pytest

from fsq_jax import prepare
from fsq_jax.data import array_source, transforms
from fsq_jax.data.dataset import Dataset
from fsq_jax.data.decode import RecordError
from fsq_jax.data.open import open_dataset


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    out = tmp_path_factory.mktemp("arrays") / "scenes"
    folders = prepare.prepare("scenes", 12, str(out), ["train[4:39]", "validation[:3]"], workers=2)
    assert folders == [str(out / "train"), str(out / "validation")]
    return out


def assert_same(record, expected):
    assert set(record) == set(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(record[name], value)
        assert np.asarray(record[name]).dtype == np.asarray(value).dtype


def test_arrays_hold_what_was_rendered(prepared):
    scenes = open_dataset("scenes", "train[4:39]", 12)
    source = open_dataset(f"arrays:{prepared}", "train", 12)
    assert len(source) == 35 and source.class_names == scenes.class_names
    assert source.splits == ("train", "validation")
    assert {name: source.meta[name] for name in scenes.meta} == scenes.meta
    for i in (0, 15, 16, 34):  # both ends of chunks
        assert_same(source[i], scenes[i])
    copy = pickle.loads(pickle.dumps(source))
    assert len(pickle.dumps(source)) < 3000
    assert_same(copy[2], scenes[2])
    part = open_dataset(f"arrays:{prepared}:train[30:]", "train[:2]", 12)
    assert_same(part[1], scenes[31])
    meta = json.loads((prepared / "train" / "meta.json").read_text())
    assert (meta["data"], meta["split"], meta["size"]) == ("scenes", "train[4:39]", 12)
    assert not list(prepared.glob("*.partial"))


def test_what_is_there_is_never_written_over(prepared):
    with pytest.raises(ValueError, match="validation' is there already; remove it, or name"):
        prepare.prepare("scenes", 12, str(prepared), ["validation"])
    with pytest.raises(ValueError, match="must name each of its splits once"):
        prepare.prepare("scenes", 12, str(prepared), ["train[:2]", "train[2:]"])
    with pytest.raises(ValueError, match="workers=-1"):
        prepare.prepare("scenes", 12, str(prepared), ["test"], workers=-1)


@pytest.mark.parametrize("kind", transforms.KINDS)
def test_pictures_of_any_size_come_to_one(tmp_path, kind):
    for name, shape in (("a", (20, 30, 3)), ("b", (16, 9, 3))):
        (tmp_path / "in" / name).mkdir(parents=True)
        image = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
        for i in range(2):
            cv2.imwrite(str(tmp_path / "in" / name / f"{i}.png"), image)
    data, out = f"folder:{tmp_path / 'in'}", tmp_path / "out"
    prepare.prepare(data, 8, str(out), ["train"], transform=kind)
    source, files = (open_dataset(d, "train", 8) for d in (f"arrays:{out}", data))
    assert len(source) == len(files) == 3 and source.class_names == ("a", "b")
    for i in range(3):
        expected = transforms.evaluation(8, kind)(files[i], None)
        again = transforms.evaluation(8, kind)(source[i], None)
        np.testing.assert_array_equal(again["image"], expected["image"])
        assert source[i]["label"] == files[i]["label"]


def numbered(records) -> Dataset:
    return Dataset("toy", "train", ("x",), records, 0, len(records), ("train",))


def test_records_that_do_not_fit(tmp_path):
    small, large = ({"image": np.zeros((n, n, 3), np.uint8), "label": 0} for n in (4, 5))
    with pytest.raises(RecordError, match=r"Record 1 of toy is of shapes .*\(5, 5, 3\)"):
        list(array_source.write(numbered([small, large]), tmp_path / "a", lambda r, _: r, {}))
    assert not (tmp_path / "a").exists()
    segments = np.full((4, 4, 2), 40_000, np.int32)
    with pytest.raises(RecordError, match="segments up to 40000, more than int16 holds"):
        records = [small | {"segments": segments}]
        list(array_source.write(numbered(records), tmp_path / "b", lambda r, _: r, {}))


def test_crowds_keep_their_ids(tmp_path):
    record = {
        "image": np.zeros((4, 4, 3), np.uint8),
        "label": 0,
        "segments": np.ones((4, 4, 2), np.int32),
    }
    records = [record | {"crowd": np.array(c, np.int32)} for c in ([3, 1], [])]
    written = array_source.write(numbered(records), tmp_path / "train", lambda r, _: r, {})
    assert list(written) == [2]
    source = open_dataset(f"arrays:{tmp_path}", "train", 4)
    for i, expected in enumerate(records):
        assert_same(source[i], expected)


def test_folders_that_are_not_whole(tmp_path):
    with pytest.raises(ValueError, match="holds no arrays: no sub-folder has a meta.json"):
        open_dataset(f"arrays:{tmp_path}", "train", 8)
    folder = tmp_path / "train"
    folder.mkdir()
    (folder / "meta.json").write_text('{"class_names": ["x"]}')
    with pytest.raises(ValueError, match="lacks image.npy and label.npy"):
        open_dataset(f"arrays:{tmp_path}", "train", 8)
    np.save(folder / "image.npy", np.zeros((3, 4, 4, 3), np.uint8))
    np.save(folder / "label.npy", np.zeros(2, np.int32))
    with pytest.raises(ValueError, match="different lengths: {'image': 3, 'label': 2}"):
        open_dataset(f"arrays:{tmp_path}", "train", 8)
    with pytest.raises(ValueError, match="has no split 'validation'; it has train"):
        open_dataset(f"arrays:{tmp_path}", "validation", 8)
