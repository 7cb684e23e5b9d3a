"""Arrays that people have are read as they are meant, or refused with what was found."""

import json

import numpy as np
import pytest

from fsq_jax.data.decode import RecordError
from fsq_jax.data.open import open_dataset
from fsq_jax.runtime.user_error import UserError

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (40, 6, 8, 3), dtype=np.uint8)
METRES = RNG.uniform(0.5, 9, (40, 6, 8)).astype(np.float32)
SEGMENTS = np.stack([RNG.integers(0, 3, (40, 6, 8)), np.ones((40, 6, 8), int)], -1)


def folder(path, **arrays):
    """A data set of two classes with these arrays over its own."""
    (path / "train").mkdir()
    defaults = {"image": PIXELS, "label": np.arange(40) % 2}
    for name, array in (defaults | arrays).items():
        np.save(path / "train" / f"{name}.npy", array)
    meta = {"class_names": ["a", "b"], "segment_names": ["void", "x", "y"], "things": [1]}
    (path / "train" / "meta.json").write_text(json.dumps(meta))
    return f"arrays:{path}"


@pytest.mark.parametrize(
    "image",
    [
        PIXELS,
        (PIXELS / 255).astype(np.float32),
        (PIXELS / 255).astype(">f8"),
        PIXELS.astype(np.float32),
        PIXELS.astype(np.int64),
        PIXELS.astype(np.uint16) * 257,
        PIXELS.transpose(0, 3, 1, 2),
        np.asfortranarray(PIXELS),
        np.concatenate([PIXELS, PIXELS[..., :1]], -1),
    ],
    ids=(
        "uint8",
        "unit",
        "big-endian",
        "float255",
        "int64",
        "uint16",
        "channels first",
        "fortran",
        "rgba",
    ),
)
def test_images_of_any_layout_are_the_same_picture(tmp_path, image):
    record = open_dataset(folder(tmp_path, image=image), "train", 8)[7]
    np.testing.assert_array_equal(record["image"], PIXELS[7])
    assert record["image"].dtype == np.uint8 and record["label"] == 1


def test_grey_and_binary_images(tmp_path):
    grey = open_dataset(folder(tmp_path, image=PIXELS[..., 0]), "train", 8)[3]["image"]
    np.testing.assert_array_equal(grey, np.repeat(PIXELS[3, ..., :1], 3, -1))
    np.save(tmp_path / "train" / "image.npy", PIXELS[..., :1] > 99)
    binary = open_dataset(f"arrays:{tmp_path}", "train", 8)[3]["image"]
    np.testing.assert_array_equal(binary[..., 0], (PIXELS[3, ..., 0] > 99) * 255)


@pytest.mark.parametrize(
    "name, array, message",
    [
        (
            "image",
            PIXELS.astype(np.float32) - 128,
            r"float32 of shape \(40, 6, 8, 3\).* from -128 to",
        ),
        ("image", PIXELS / np.nan, "nan"),
        ("image", PIXELS.astype(np.uint16) * 16, "uint16 of shape .* to 4080; expected uint8"),
        ("image", PIXELS.astype(np.int32) * 300, "int32 of shape"),
        ("image", PIXELS.astype(complex), "complex128 of shape"),
        ("image", PIXELS[..., None], "expected uint8"),
        ("image", PIXELS[:0], "different lengths"),
        (
            "label",
            np.arange(40) % 2 + 1,
            r"from 1 to 2 \(they count from 1: subtract 1\); expected 0 to",
        ),
        ("label", np.arange(40) % 2 + 998, "label.npy has labels from 998 to 999; expected 0 to 1"),
        ("label", np.full(40, -1), "from -1 to -1"),
        ("label", np.full(40, 2**40), "from 1099511627776"),
        ("label", np.eye(40)[:, :2], r"float64 of shape \(40, 2\); expected integers"),
        ("label", np.zeros(40), "float64 .* expected integers"),
        (
            "depth",
            (METRES * 1000).astype(np.uint16),
            "uint16 of shape .* millimetres: divide by 1000",
        ),
        ("depth", METRES[..., None, None], "expected floats"),
        ("segments", SEGMENTS.astype(np.float32), "float32 .* expected integers"),
        ("segments", SEGMENTS[..., 0], r"\[N,H,W,2\], a class and an instance"),
    ],
)
def test_other_arrays_are_refused_with_what_was_found(tmp_path, name, array, message):
    with pytest.raises(UserError, match=message):
        open_dataset(folder(tmp_path, **{name: array}), "train", 8)


def test_labels_of_any_integer_type_and_depth_of_any_float(tmp_path):
    depth = METRES.astype(np.float64)[..., None]
    depth[0, 0, 0] = np.nan
    depth[0, 0, 1] = np.inf
    arrays = dict(label=(np.arange(40) % 2).astype(np.uint8)[:, None], depth=depth)
    record = open_dataset(folder(tmp_path, **arrays), "train", 8)[0]
    assert record["label"] == 0 and type(record["label"]) is int
    assert record["depth"].dtype == np.float32 and record["depth"].shape == (6, 8)
    assert record["depth"][0, 0] == record["depth"][0, 1] == 0  # not known
    np.testing.assert_array_equal(record["depth"][1:], METRES[0, 1:])


def test_segments_first_and_last_and_what_does_not_fit(tmp_path):
    source = open_dataset(folder(tmp_path, segments=SEGMENTS.transpose(0, 3, 1, 2)), "train", 8)
    assert source[5]["segments"].dtype == np.int32
    np.testing.assert_array_equal(source[5]["segments"], SEGMENTS[5])
    wrong = SEGMENTS.astype(np.int64)
    wrong[3, 0, 0, 1] = 2**33
    np.save(tmp_path / "train" / "segments.npy", wrong)
    source = open_dataset(f"arrays:{tmp_path}", "train", 8)
    with pytest.raises(
        RecordError, match="Record 3 of .*segments.npy .* to 8589934592; .* 2147483647"
    ):
        source[3]


def test_a_row_unlike_the_rest_is_refused_where_it_is_read(tmp_path):
    image = (PIXELS / 255).astype(np.float32)
    image = np.concatenate([image] * 3)  # more than are looked at
    image[2, 0, 0, 0] = 7.5
    arrays = dict(image=image, label=np.zeros(120, int))
    source = open_dataset(folder(tmp_path, **arrays), "train", 8)
    source[1]
    with pytest.raises(RecordError, match=r"Record 2 of .*image.npy has values from .* to 7.5"):
        source[2]


@pytest.mark.parametrize(
    "meta, message",
    [
        ("{", "meta.json is not readable as JSON"),
        ("[" * 100_000, "meta.json is nested too deeply"),
        ("[]", "meta.json is a list; expected an object"),
        ('{"class_names": 3}', "meta.json: class_names is an integer; expected a list"),
        ('{"class_names": []}', "meta.json: class_names is empty"),
        ('{"class_names": ["a", "b"], "segment_names": [1]}', r"segment_names\[0\] is an integer"),
        ('{"class_names": ["a", "b"], "segment_names": ["v", "x"], "things": [2]}', "things"),
    ],
)
def test_meta_that_is_damaged(tmp_path, meta, message):
    spec = folder(tmp_path)
    (tmp_path / "train" / "meta.json").write_text(meta)
    with pytest.raises(UserError, match=message):
        open_dataset(spec, "train", 8)


def test_array_files_that_are_damaged(tmp_path):
    spec = folder(tmp_path)
    whole = (tmp_path / "train" / "image.npy").read_bytes()
    objects = np.array([{}] * 40)
    for damaged in (b"", b"no array", whole[: len(whole) // 2], whole[:50], None):
        if damaged is None:
            np.save(tmp_path / "train" / "image.npy", objects, allow_pickle=True)
        else:
            (tmp_path / "train" / "image.npy").write_bytes(damaged)
        with pytest.raises(UserError, match="image.npy can't be read as an array"):
            open_dataset(spec, "train", 8)
