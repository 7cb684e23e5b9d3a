"""WebDataset shards: any record at once, and a sentence for each way in which they are damaged."""

import io
import json
import os
import pickle
import tarfile
import time

import cv2
import numpy as np
import pytest

from fsq_jax.data import pipeline, shard_index, transforms, wds_source
from fsq_jax.data.decode import RecordError
from fsq_jax.data.open import open_dataset
from fsq_jax.runtime.user_error import UserError

WNIDS = ("n01440764", "n01443537", "n01484850")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FSQ_JAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def picture(value, kind=".png"):
    return cv2.imencode(kind, np.full((6, 8, 3), value % 256, np.uint8))[1].tobytes()


def write_tar(path, members, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(content), 1.5  # a fraction: an extended header in PAX
            archive.addfile(info, io.BytesIO(content))


def sample(number, label, **changes):
    """The members of a sample as timm writes them: jpg, cls and json."""
    wnid = WNIDS[label]
    members = {"filename": f"{wnid}/{wnid}_{number}.JPEG", "height": 6, "label": label, "width": 8}
    members = {
        "cls": str(label).encode(),
        "jpg": picture(10 * number),
        "json": json.dumps(members).encode(),
    } | changes
    return [(f"{wnid}_{number}.{ext}", content) for ext, content in members.items() if content]


def imagenet(root, shards=3, each=4, **options):
    for shard in range(shards):
        numbers = range(each * shard, each * (shard + 1))
        members = [member for i in numbers for member in sample(i, i % 3)]
        write_tar(root / f"imagenet1k-train-{shard:04d}.tar", members, **options)
    held_out = sample(20, 1) + sample(21, 0)
    write_tar(root / "imagenet1k-validation-00.tar", held_out, **options)
    return f"wds:{root}"


@pytest.mark.parametrize("tar", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_imagenet_as_timm_has_it(tmp_path, tar):
    spec = imagenet(tmp_path / "in1k", format=tar)
    train, held_out = (open_dataset(spec, split, 8) for split in ("train", "validation"))
    assert (len(train), len(held_out)) == (12, 2) and train.splits == ("train", "validation")
    assert train.class_names == held_out.class_names == WNIDS
    for i in (11, 0, 5):
        record = train[i]
        assert record["label"] == i % 3 and (record["image"] == 10 * i).all()
    assert held_out[0]["label"] == 1
    assert len(open_dataset(f"{spec}:train[:50%]", "train[1:]", 8)) == 5
    braces = f"wds:{tmp_path}/in1k/imagenet1k-train-{{0001..0002}}.tar"
    assert (open_dataset(braces, "train", 8)[0]["image"] == 40).all()


def test_a_source_travels_light_and_gives_the_same_batches_anywhere(tmp_path):
    source = open_dataset(imagenet(tmp_path / "x"), "train", 8)
    source[3]
    copy = pickle.dumps(source)
    assert len(copy) < 3_000 and pickle.loads(copy)[7]["label"] == 1
    augment = transforms.augment(8, flip=False)

    def batches(**where):
        return pipeline.train_batches(source, augment, batch_size=4, seed=1, **where)

    whole = batches()
    first = [next(whole)["image"] for _ in range(5)]
    again = batches(start=3)  # as a resumed run
    np.testing.assert_array_equal(next(again)["image"], first[3])
    hosts = [next(batches(process_index=i, process_count=2))["image"] for i in range(2)]
    rows = np.stack(hosts, axis=1).reshape(first[0].shape)
    np.testing.assert_array_equal(rows, first[0])


def test_labels_from_json_or_words_and_none_at_all(tmp_path):
    members = [m for i in range(4) for m in sample(i, i % 2, cls=b"")]
    write_tar(tmp_path / "json" / "a.tar", members)
    assert open_dataset(f"wds:{tmp_path}/json", "train", 8).class_names == WNIDS[:2]
    for shard, words in enumerate((("dog", "cat"), ("cat", "ant"))):
        members = [m for i, w in enumerate(words) for m in sample(i, 0, cls=w.encode(), json=b"")]
        members = [(f"{i // 2}.{name.split('.')[1]}", c) for i, (name, c) in enumerate(members)]
        write_tar(tmp_path / "words" / f"{shard}.tar", members)
    source = open_dataset(f"wds:{tmp_path}/words", "train", 8)
    assert source.class_names == ("ant", "cat", "dog")
    assert [source[i]["label"] for i in range(4)] == [2, 1, 1, 0]
    write_tar(tmp_path / "none" / "a.tar", [("1.jpg", picture(1)), ("2.webp", picture(2, ".webp"))])
    source = open_dataset(f"wds:{tmp_path}/none", "train", 8)
    assert source.class_names == ("image",) and source[1]["label"] == 0


def test_names_from_a_file(tmp_path):
    spec = imagenet(tmp_path / "x")
    (tmp_path / "x" / "classes.txt").write_text("tench\ngoldfish\nshark\nray\n")
    assert open_dataset(spec, "validation", 8).class_names == ("tench", "goldfish", "shark", "ray")
    (tmp_path / "x" / "classes.txt").write_text("tench\n")
    with pytest.raises(UserError, match="has labels up to 2, and a file that names 1"):
        open_dataset(spec, "train", 8)


@pytest.mark.parametrize(
    "members, message",
    [
        (
            sample(1, 0, jpg=b""),
            "Sample 'n01440764_1' in .* must have one image; it has only cls, json",
        ),
        (sample(1, 0, png=picture(1)), "it has jpg, png"),
        (sample(1, 0) + sample(2, 1, cls=b"", json=b""), "n01443537_2.jpg in .* has no label"),
        (sample(1, 0, cls=b"-3"), "has label -3; expected a number or a word"),
        (sample(1, 0, cls=b"", json=b'{"label": 1.5}'), "has label 1.5"),
        (sample(1, 0, json=b"{"), "The .json of sample 'n01440764_1' in .* can't be read"),
        ([("notes.txt", b"x")], "must have one image; it has only txt"),
        ([], "holds no sample"),
    ],
)
def test_samples_that_lack_something(tmp_path, members, message):
    write_tar(tmp_path / "a.tar", members)
    with pytest.raises(UserError, match=message):
        open_dataset(f"wds:{tmp_path}", "train", 8)


def test_a_held_out_class_that_training_has_not(tmp_path):
    spec = imagenet(tmp_path / "x")
    write_tar(tmp_path / "x" / "imagenet1k-validation-00.tar", sample(1, 0, cls=b"7"))
    with pytest.raises(UserError, match="validation-00.tar has labels beyond the 3 classes"):
        open_dataset(spec, "validation", 8)


def test_shards_that_are_damaged(tmp_path):
    path = tmp_path / "a.tar"
    write_tar(path, [m for i in range(40) for m in sample(i, 0)])
    whole = path.read_bytes()
    with tarfile.open(path) as archive:
        between = archive.getmembers()[9].offset
    for damaged in (
        whole[:5000],
        whole[:between],
        whole[: between + 300],
        b"",
        b"<html>",
        whole[7:],
    ):
        path.write_bytes(damaged)
        with pytest.raises(
            UserError, match=r"a.tar (is not a whole tar|is cut off|holds no sample)"
        ):
            open_dataset(f"wds:{tmp_path}", "train", 8)
    path.write_bytes(whole + whole * 20)
    with pytest.raises(UserError, match="behind its end mark"):
        open_dataset(f"wds:{tmp_path}", "train", 8)


def test_a_damaged_image_is_named(tmp_path):
    write_tar(tmp_path / "a.tar", sample(0, 0) + sample(1, 1, jpg=picture(1)[:40]))
    source = open_dataset(f"wds:{tmp_path}", "train", 8)
    source[0]
    with pytest.raises(RecordError, match="^n01443537_1.jpg in .*a.tar is not a whole, readable"):
        source[1]


def test_an_index_is_built_once_and_again_where_shards_changed(tmp_path, monkeypatch, capsys):
    scanned = []

    def counted(path):
        scanned.append(path.name)
        return scan(path)

    scan = wds_source.scan
    monkeypatch.setattr(wds_source, "scan", counted)
    spec = imagenet(tmp_path / "x")
    old = open_dataset(spec, "train", 8)
    assert len(scanned) == 3
    open_dataset(spec, "train", 8)
    assert len(scanned) == 3
    changed = tmp_path / "x" / "imagenet1k-train-0001.tar"
    write_tar(changed, sample(50, 2))
    with pytest.raises(RecordError, match="train-0001.tar has changed since it was indexed"):
        old[4]
    source = open_dataset(spec, "train", 8)
    assert scanned[3:] == [changed.name] and len(source) == 9  # the others are as they were
    assert "train-0001.tar has changed" in "".join(capsys.readouterr())
    assert [source[i]["label"] for i in range(9)] == [0, 1, 2, 0, 2, 2, 0, 1, 2]
    copy = pickle.loads(pickle.dumps(old))
    with pytest.raises(RecordError, match="The index .* has changed since this run opened it"):
        copy[0]
    later = time.time() + 60
    os.utime(changed, (later, later))
    open_dataset(spec, "train", 8)
    assert len(scanned) == 5


def test_a_damaged_index_is_made_again(tmp_path, cache, capsys):
    spec = imagenet(tmp_path / "x")
    expected = open_dataset(spec, "train", 8)[4]
    (index,) = cache.iterdir()
    whole = index.read_bytes()
    for damaged in (b"", b"x" * 99, whole[: len(whole) // 2]):
        index.write_bytes(damaged)
        np.testing.assert_array_equal(open_dataset(spec, "train", 8)[4]["image"], expected["image"])
        assert "can't be read" in "".join(capsys.readouterr())
        assert len(index.read_bytes()) == len(whole)


def test_an_index_lies_beside_its_shards_or_in_the_home(tmp_path, monkeypatch):
    monkeypatch.delenv("FSQ_JAX_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    spec = imagenet(tmp_path / "x")
    index = open_dataset(spec, "train", 8).records.index
    assert index.path.parent == tmp_path / "x" / ".fsq_jax"
    written, refused = shard_index.written_whole, tmp_path / "y"

    def read_only(path, mode):
        if str(path).startswith(str(refused)):
            raise PermissionError(13, "Permission denied")
        return written(path, mode)

    monkeypatch.setattr(shard_index, "written_whole", read_only)
    index = open_dataset(imagenet(refused), "train", 8).records.index
    assert index.path.parent == tmp_path / "home" / ".cache" / "fsq_jax"
