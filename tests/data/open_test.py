"""Scenes, folders and token caches by their specs; what is said of those that are not there."""

import json
import pickle

import cv2
import numpy as np
import pytest

from fsq_jax.data import scenes
from fsq_jax.data.decode import RecordError
from fsq_jax.data.open import open_dataset


def write_images(folder, count, first=0):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(first, first + count):
        cv2.imwrite(str(folder / f"{i:03d}.png"), np.full((6, 8, 3), i, np.uint8))


def write_tokens(folder, records=6, views=2, length=4, codebook=10, **meta):
    folder.mkdir(parents=True, exist_ok=True)
    tokens = np.arange(records * views * length).reshape(records, views, length) % codebook
    np.save(folder / "tokens.npy", tokens.astype(np.uint16))
    np.save(folder / "labels.npy", np.arange(records) % 3)
    meta = {"codebook_size": codebook, "num_classes": 3, "class_names": ["a", "b", "c"]} | meta
    (folder / "meta.json").write_text(json.dumps(meta | {"fingerprint": "f"}))
    return tokens


def test_scenes():
    source = open_dataset("scenes", "train", 32)
    assert (source.name, source.num_classes, len(source)) == ("scenes", 30, 50_000)
    assert source.class_names[0] == "red sphere"
    assert source[0]["image"].shape == (32, 32, 3)
    assert len(open_dataset("scenes", "validation", 32)) == 1000
    with pytest.raises(IndexError):
        source[50_000]


def test_cuts_in_spec_and_split_add_up_and_scenes_have_no_end():
    spec = "scenes:train[100:200]+validation[:7]"
    assert len(open_dataset(spec, "train", 16)) == 100
    assert len(open_dataset(spec, "validation", 16)) == 7
    part = open_dataset(spec, "train[:50%]", 16)
    assert len(part) == 50
    whole = scenes.Scenes("train", 16)
    np.testing.assert_array_equal(part[3]["image"], whole[103]["image"])
    longer = open_dataset("scenes:train[:60000]", "train", 16)
    assert len(longer) == 60_000 and longer[59_999]["label"] >= 0
    with pytest.raises(ValueError, match="no split 'trian'.*Did you mean 'train'"):
        open_dataset("scenes:trian[:9]", "train", 16)


def test_cache_keeps_what_is_wanted_and_does_not_travel():
    source = open_dataset("scenes:train[:5]", "train", 16, cache=True, features=("depth",))
    record = source[2]
    assert set(record) == {"image", "label", "depth"}
    assert source[2]["image"] is record["image"]
    record["image"] = None  # a changed dict is not a changed cache
    assert source[2]["image"] is not None
    assert len(pickle.dumps(source)) < 4000


def first_row(record):
    return record | {"depth": record["depth"][:1]}


def test_a_mapped_source_travels_with_its_function():
    source = open_dataset("scenes:validation[3:5]", "validation", 16)
    mapped = pickle.loads(pickle.dumps(source.mapped(first_row)))
    assert len(mapped) == 2 and mapped.meta == source.meta
    np.testing.assert_array_equal(mapped[1]["depth"], source[1]["depth"][:1])
    np.testing.assert_array_equal(mapped.cut("validation[1:]")[0]["image"], source[1]["image"])


def test_scenes_say_which_segments_are_things():
    source = open_dataset("scenes", "train", 16)
    names = [source.meta["segment_names"][i] for i in source.meta["things"]]
    assert names == list(scenes.KIND_NAMES) and "wall" not in names


def test_folder_without_splits(tmp_path):
    for i, name in enumerate(("dog", "cat", "ant")):
        write_images(tmp_path / name, 20, first=20 * i)
    write_images(tmp_path, 1)  # lies beside the classes
    (tmp_path / "cat" / ".hidden.png").write_bytes(b"")
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    train = open_dataset(f"folder:{tmp_path}", "train", 32)
    held_out = open_dataset(f"folder:{tmp_path}", "validation", 32)
    assert train.class_names == held_out.class_names == ("ant", "cat", "dog")
    values = [[int(r["image"][0, 0, 0]) for r in map(s.__getitem__, range(len(s)))]
              for s in (train, held_out)]  # fmt: skip
    assert sorted(values[0] + values[1]) == list(range(60)) and 0 < len(values[1]) < 12
    assert all(train[i]["label"] == 2 - v // 20 for i, v in enumerate(values[0]))
    (tmp_path / "ant" / "000new.png").write_bytes((tmp_path / "ant" / "040.png").read_bytes())
    again = open_dataset(f"folder:{tmp_path}", "validation", 32)
    assert set(held_out.records.files) <= set(again.records.files)  # a new file moves no other
    assert pickle.loads(pickle.dumps(train))[0]["image"].shape == (6, 8, 3)


def test_folder_with_splits(tmp_path):
    write_images(tmp_path / "train" / "b", 3)
    write_images(tmp_path / "train" / "a" / "deep", 2)
    write_images(tmp_path / "val" / "b", 2)
    assert len(open_dataset(f"folder:{tmp_path}", "train", 8)) == 5
    validation = open_dataset(f"folder:{tmp_path}", "validation", 8)
    assert len(validation) == 2 and validation[0]["label"] == 1
    write_images(tmp_path / "val" / "c", 1)
    with pytest.raises(ValueError, match="c/000.png is of no class"):
        open_dataset(f"folder:{tmp_path}", "validation", 8)


def test_folder_without_classes(tmp_path):
    write_images(tmp_path, 9)
    source = open_dataset(f"folder:{tmp_path}", "train", 8)
    assert source.class_names == ("image",) and source[0]["label"] == 0
    assert len(source) + len(open_dataset(f"folder:{tmp_path}", "validation", 8)) == 9


def test_folders_that_are_not_there(tmp_path):
    (tmp_path / "pictures").mkdir()
    with pytest.raises(ValueError, match="is not a folder. Did you mean '.*pictures'"):
        open_dataset(f"folder:{tmp_path}/picturs", "train", 8)
    with pytest.raises(ValueError, match="holds no images for the split 'train'"):
        open_dataset(f"folder:{tmp_path}/pictures", "train", 8)
    write_images(tmp_path / "train" / "a", 2)
    with pytest.raises(ValueError, match="has no split 'validation'; it has train"):
        open_dataset(f"folder:{tmp_path}", "validation", 8)


def test_a_damaged_file_is_named(tmp_path):
    write_images(tmp_path / "train" / "a", 3)
    whole = (tmp_path / "train" / "a" / "001.png").read_bytes()
    (tmp_path / "train" / "a" / "001.png").write_bytes(whole[:40])
    source = open_dataset(f"folder:{tmp_path}", "train", 8)
    assert source[0]["image"].shape == (6, 8, 3)
    with pytest.raises(RecordError, match="a/001.png is not a whole, readable image"):
        source[1]
    (tmp_path / "train" / "a" / "002.png").unlink()
    with pytest.raises(RecordError, match="a/002.png cannot be read"):
        source[2]


def test_token_cache(tmp_path):
    tokens = write_tokens(tmp_path)
    source = open_dataset(f"tokens:{tmp_path}", "train[1:]", 32)
    assert len(source) == 5 and source.num_classes == 3
    assert source.meta["codebook_size"] == 10 and source.meta["fingerprint"] == "f"
    record = pickle.loads(pickle.dumps(source))[0]
    np.testing.assert_array_equal(record["tokens_VL"], tokens[1])
    assert record["tokens_VL"].dtype == np.int32 and record["label"] == 1
    with pytest.raises(ValueError, match="no split 'validation'; it has train"):
        open_dataset(f"tokens:{tmp_path}", "validation", 32)


def test_token_cache_with_splits(tmp_path):
    write_tokens(tmp_path / "train", 6)
    write_tokens(tmp_path / "validation", 4)
    assert len(open_dataset(f"tokens:{tmp_path}", "validation", 32)) == 4


def test_token_caches_that_cannot_be(tmp_path):
    with pytest.raises(ValueError, match="lacks tokens.npy, labels.npy, meta.json"):
        open_dataset(f"tokens:{tmp_path}", "train", 32)
    write_tokens(tmp_path)
    np.save(tmp_path / "labels.npy", np.zeros(3))
    with pytest.raises(ValueError, match=r"shape \(6, 2, 4\) and labels of shape \(3,\)"):
        open_dataset(f"tokens:{tmp_path}", "train", 32)
    write_tokens(tmp_path, codebook_size=7)
    with pytest.raises(RecordError, match="Record 0 of .* tokens from 0 to 7; .* 0 to 6"):
        open_dataset(f"tokens:{tmp_path}", "train", 32)[0]
    (tmp_path / "meta.json").write_text('{"codebook_size": 3}')
    with pytest.raises(ValueError, match="lacks class_names, fingerprint, num_classes"):
        open_dataset(f"tokens:{tmp_path}", "train", 32)
