"""Scenes are the same by index, plausible in depth and segments, and show their main object."""

import numpy as np
import pytest

from fsq_jax.data import scenes

INDICES = range(40)


@pytest.fixture(scope="module")
def records():
    source = scenes.Scenes("train", 32)
    return [source[i] for i in INDICES]


def test_a_record_depends_on_its_index_alone(records):
    again = scenes.Scenes("train", 32)
    for i in (39, 3, 17):
        for name, value in again[i].items():
            np.testing.assert_array_equal(value, records[i][name])


def test_another_split_and_another_index_are_other_pictures(records):
    other = scenes.Scenes("validation", 32)
    assert not any(np.array_equal(other[i]["image"], records[i]["image"]) for i in INDICES)
    assert len({r["image"].tobytes() for r in records}) == len(records)


def test_shapes_types_and_ranges(records):
    for record in records:
        assert record["image"].shape == (32, 32, 3) and record["image"].dtype == np.uint8
        assert record["depth"].shape == (32, 32) and record["depth"].dtype == np.float32
        assert record["segments"].shape == (32, 32, 2) and record["segments"].dtype == np.int32
        assert scenes.MIN_DEPTH <= record["depth"].min() < record["depth"].max()
        assert record["depth"].max() < scenes.MAX_DEPTH  # nothing had to be clipped
        assert 0 <= record["label"] < len(scenes.CLASS_NAMES)


def test_instances_and_classes_agree(records):
    for i, record in zip(INDICES, records, strict=True):
        semantic, instance = np.moveaxis(record["segments"], -1, 0)
        np.testing.assert_array_equal(semantic <= scenes.NUM_STUFF, instance == 0)
        assert semantic.min() >= 1 and semantic.max() < len(scenes.SEGMENT_NAMES)
        things = scenes.draw_scene("train", i).things
        for number in set(instance.ravel()) - {0}:
            (name,) = {scenes.SEGMENT_NAMES[c] for c in semantic[instance == number]}
            assert name == things[number - 1].solid.kind


def test_the_main_object_is_big_near_and_of_the_labels_colour(records):
    for record in records:
        main = record["segments"][..., 1] == 1
        assert 0.25 <= main.any(axis=0).mean() <= 0.65
        assert not main[0].any() and not main[-1].any()
        assert record["depth"][main].mean() < record["depth"][~main].max()
        colour, kind = scenes.CLASS_NAMES[record["label"]].split()
        assert scenes.SEGMENT_NAMES[record["segments"][main][0, 0]] == kind
        mean = record["image"][main].mean(axis=0)
        palette = np.array(list(scenes.COLOURS.values()))
        cosine = palette @ mean / np.linalg.norm(palette, axis=1)
        assert list(scenes.COLOURS)[cosine.argmax()] == colour


def test_resolution_changes_nothing_but_the_resolution(records):
    fine = scenes.Scenes("train", 96)
    for i in range(4):
        record = fine[i]
        assert record["label"] == records[i]["label"]
        # The middle pixel of each 3 x 3 block has the coarse pixel's centre.
        centres = record["segments"][1::3, 1::3]
        assert (centres == records[i]["segments"]).all(axis=-1).mean() > 0.995
        blocks = record["image"].reshape(32, 3, 32, 3, 3).mean(axis=(1, 3))
        assert np.abs(blocks - records[i]["image"]).mean() < 3


def test_all_classes_occur():
    labels = [scenes.draw_scene("train", i).label for i in range(1500)]
    counts = np.bincount(labels, minlength=30)
    assert len(counts) == 30 and counts.min() > 20


def test_unknown_split_and_tiny_size():
    with pytest.raises(ValueError, match="no split 'dev'"):
        scenes.Scenes("dev", 32)
    with pytest.raises(ValueError, match="8 pixels"):
        scenes.Scenes("train", 4)
