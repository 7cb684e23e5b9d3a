"""Image parquet as the Hugging Face hub has it: any row, wherever its bytes are."""

import json
import pickle

import cv2
import numpy as np
import pytest

from fsq_jax.data import parquet_source
from fsq_jax.data.decode import RecordError
from fsq_jax.data.open import open_dataset
from fsq_jax.runtime.user_error import UserError

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
NAMES = ["tench", "goldfish", "shark"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FSQ_JAX_CACHE", str(tmp_path / "cache"))


def picture(value):
    """An image that no compression makes smaller: noise, but for its first pixel."""
    image = np.random.default_rng(value).integers(0, 256, (6, 8, 3), np.uint8)
    image[0, 0] = value
    return cv2.imencode(".png", image)[1].tobytes()


def table(values, labels=None, image="image", label="label", bare=False, metadata=True):
    """A table of pictures as `datasets` writes it."""
    encoded = [None if value is None else picture(value) for value in values]
    labels = [(value or 0) % 3 for value in values] if labels is None else labels
    structs = encoded if bare else [{"bytes": e, "path": f"{i}.png"} for i, e in enumerate(encoded)]
    kind = pa.binary() if bare else pa.struct({"bytes": pa.binary(), "path": pa.string()})
    made = pa.table({image: pa.array(structs, kind), label: labels})
    features = {image: {"_type": "Image"}, label: {"names": NAMES, "_type": "ClassLabel"}}
    described = {"huggingface": json.dumps({"info": {"features": features}})}
    return made.replace_schema_metadata(described if metadata else None)


def write(path, made, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(made, path, **({"row_group_size": 4} | options))


@pytest.mark.parametrize(
    "options",
    [
        {"compression": "snappy"},
        {"compression": "NONE"},
        {"compression": "zstd"},
        {"compression": "NONE", "use_dictionary": False},
        {"compression": "NONE", "row_group_size": 1},
        {"compression": "NONE", "data_page_version": "2.0", "data_page_size": 300},
    ],
    ids=str,
)
def test_any_row_of_any_writer(tmp_path, options):
    train = list(range(11)) + [3, 3, 20]  # the same picture again, once in its own row group
    write(tmp_path / "d" / "train-00000-of-00002.parquet", table(train[:7]), **options)
    write(tmp_path / "d" / "train-00001-of-00002.parquet", table(train[7:]), **options)
    write(tmp_path / "d" / "test-00000-of-00001.parquet", table([2, 1]), **options)
    source = open_dataset(f"parquet:{tmp_path}/d", "train", 8)
    assert source.splits == ("train", "test") and source.class_names == tuple(NAMES)
    for i in (13, 0, 12, 5, 11, 6):
        record = source[i]
        assert record["label"] == train[i] % 3 and (record["image"][0, 0] == train[i]).all()
    held = (source.records.index.rows["offset"] >= 0).all()
    assert held == (options["compression"] == "NONE")
    assert open_dataset(f"parquet:{tmp_path}/d", "validation[1:]", 8)[0]["label"] == 1
    copy = pickle.dumps(source)
    assert len(copy) < 3_000 and pickle.loads(copy)[9]["label"] == 0


def test_columns_of_other_names_and_kinds(tmp_path):
    made = table([4, 5], image="img", label="fine_label", metadata=False)
    made = made.append_column("coarse_label", pa.array([0, 0]))
    write(tmp_path / "a.parquet", made)
    source = open_dataset(f"parquet:{tmp_path}/*.parquet", "train", 8)
    assert source.class_names == ("0", "1", "2") and source[1]["label"] == 2
    write(tmp_path / "b.parquet", table([4], bare=True).select(["image"]))
    source = open_dataset(f"parquet:{tmp_path}/b.parquet", "train", 8)
    assert source.class_names == ("image",) and (source[0]["image"][0, 0] == 4).all()


@pytest.mark.parametrize(
    "made, message",
    [
        (table([1], image="x", metadata=False), "has the columns x, label; expected an image"),
        (
            table([1, None]),
            "Row group 0 of .*a.parquet has 1 rows without an image's bytes in its column",
        ),
        (
            table([1, 2], labels=[0, None]),
            "Row group 0 of .* in its column 'label' 1 empty ones of",
        ),
        (table([1, 2], labels=["x", "y"]), "values of type string; expected an integer"),
        (table([1, 2], labels=[0, -1]), "labels down to -1"),
        (table([1, 2], labels=[0, 3]), "go up to 3"),
        (table([1]).slice(0, 0), "holds no row"),
    ],
)
def test_what_is_missing_is_named(tmp_path, made, message):
    write(tmp_path / "a.parquet", made)
    with pytest.raises(UserError, match=message):
        open_dataset(f"parquet:{tmp_path}", "train", 8)


def test_damaged_files(tmp_path):
    path = tmp_path / "train-0.parquet"
    write(path, table(list(range(30))), compression="snappy")
    whole = path.read_bytes()
    middle = bytearray(whole)
    middle[100:400] = bytes(300)
    for damaged in (b"", b"no parquet", whole[:-9], whole[: len(whole) // 2], bytes(middle)):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="train-0.parquet can't be read as parquet"):
            open_dataset(f"parquet:{tmp_path}", "train", 8)


def test_a_file_that_changes_while_it_is_read(tmp_path):
    path = tmp_path / "train-0.parquet"
    write(path, table(list(range(9))), compression="NONE")
    source = open_dataset(f"parquet:{tmp_path}", "train", 8)
    write(path, table(list(range(8))), compression="NONE")
    with pytest.raises(RecordError, match="train-0.parquet has changed since it was indexed"):
        source[0]
    assert len(open_dataset(f"parquet:{tmp_path}", "train", 8)) == 8


def test_a_damaged_image_is_named(tmp_path):
    broken = table([1, 2]).to_pylist()
    broken[1]["image"]["bytes"] = broken[1]["image"]["bytes"][:40]
    write(tmp_path / "a.parquet", pa.Table.from_pylist(broken, schema=table([1]).schema))
    source = open_dataset(f"parquet:{tmp_path}", "train", 8)
    with pytest.raises(RecordError, match="Row 1 of row group 0 of .*a.parquet is not a whole"):
        source[1]


def test_without_pyarrow(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    with pytest.raises(UserError, match=r"needs pyarrow; pip install 'fsq_jax\[parquet\]'"):
        parquet_source.open_source(str(tmp_path), "train")
