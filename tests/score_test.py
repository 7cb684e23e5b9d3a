"""Scores of images in any form, beside each other only where they were measured alike."""

import json
import types

import numpy as np
import pytest
from absl import flags
from PIL import Image

from fsq_jax import reference, score
from fsq_jax.data.open import open_dataset
from fsq_jax.runtime import manifest
from fsq_jax.scoring import protocols, reference_file

ADM = protocols.named("adm").over("random")


def main(**options) -> None:
    """`fsq_jax.score` with these flags."""
    common = dict(protocol="adm", features="random", weights="", batch_size=16)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flags, "FLAGS", types.SimpleNamespace(**(common | options)))
        score.main([])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """ref.npz of 40 scenes of 16 pixels, and samples.npz: 20 of them with noise."""
    folder = tmp_path_factory.mktemp("scores")
    said = reference.build(
        "scenes",
        16,
        str(folder / "ref.npz"),
        ADM,
        split="train[:40]",
        images=20,
        first=True,
        batch_size=16,
    )
    assert said.endswith(
        "ref.npz: statistics of 40 images of scenes train[:40] at 16 pixels, and 20 first of the "
        "images"
    )
    with np.load(folder / "ref.npz") as file:
        images = file["arr_0"]
    noise = np.random.default_rng(0).normal(0, 20, images.shape)
    np.savez(folder / "samples.npz", (images + noise).clip(0, 255).astype(np.uint8))
    return folder


def test_a_reference_says_what_it_is_of(folder):
    saved = reference_file.load(folder / "ref.npz")
    assert saved.statistics.origin == protocols.Reference(
        "scenes", "train[:40]", 40, "", "20 first"
    )
    assert saved.record["features"]["name"] == "random" and saved.size == (16, 16)
    source = open_dataset("scenes", "train", 16)
    with np.load(folder / "ref.npz") as file:
        np.testing.assert_array_equal(file["arr_0"], [source[i]["image"] for i in range(20)])


def test_a_subset_has_all_classes_alike():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 100)
    subset, chosen = reference.Subset(10, 4), []
    for start in range(0, 100, 8):
        part = labels[start : start + 8]
        rows = subset.choose(part, np.arange(len(part)) != 0)
        chosen += part[rows].tolist()
        subset.keep(np.zeros((len(rows), 2, 2, 3), np.float32))
        assert 0 not in rows  # masked out
    assert len(chosen) == len(subset.images()) == 10 and max(np.bincount(chosen)) == 3
    assert reference.Subset(3, 1).choose(labels[:8], np.ones(8, bool)) == [0, 1, 2]
    assert reference.Subset(0, 1).images() is None


def test_one_image_is_no_reference(tmp_path):
    with pytest.raises(ValueError, match=r"needs at least 2 images; scenes train\[:1\] has 1"):
        reference.build("scenes", 16, str(tmp_path / "a.npz"), ADM, split="train[:1]")


def test_images_in_any_form_have_one_score(folder, tmp_path, capsys):
    with np.load(folder / "samples.npz") as file:
        images = file["arr_0"]
    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{i:02}.png")
    np.savez(tmp_path / "float.npz", images / np.float32(255))
    ref = str(folder / "ref.npz")
    first = score.score(str(folder / "samples.npz"), ref, ADM, batch_size=8)
    assert set(first) == {"fd_random", "precision_random", "recall_random"}
    assert first["fd_random"]["value"] > 0.1
    protocol = first["fd_random"]["protocol"]
    assert protocol["num_images"] == 20 and protocol["reference"]["num_images"] == 40
    for other in (tmp_path, tmp_path / "float.npz"):
        again = score.score(str(other), ref, ADM, batch_size=16)
        for name, result in first.items():
            assert again[name]["value"] == pytest.approx(result["value"], rel=1e-4)
    main(samples=str(tmp_path), reference=ref, json=str(tmp_path / "new" / "a.json"), beside=[])
    saved = json.loads((tmp_path / "new" / "a.json").read_text())
    assert saved["fd_random"]["protocol"]["reference"] == protocol["reference"]
    printed = capsys.readouterr()
    assert f"{saved['fd_random']['value']:.6g}" in printed.out
    assert "asks for 50000 samples, these are 20" in printed.err


def test_images_against_images(folder):
    samples = str(folder / "samples.npz")
    same = score.score(samples, samples, ADM, batch_size=8)
    assert abs(same["fd_random"]["value"]) < 1e-3
    assert same["precision_random"]["value"] == same["recall_random"]["value"] == 1
    own = same["fd_random"]["protocol"]["reference"]
    assert own["sha256"] == manifest.sha256(samples) and own["name"] == "samples.npz"


def test_scores_stand_beside_each_other_only_where_they_compare(folder):
    samples, ref = str(folder / "samples.npz"), str(folder / "ref.npz")
    one = score.score(samples, ref, ADM, batch_size=8)
    table = score.table({"a": one, "b": one})
    assert table.header == ("", "a", "b") and table.rows[0][1] == table.rows[0][2]
    uneven = score.score(samples, ref, ADM, batch_size=9)  # on 8 devices
    rows = score.table({"a": one, "b": uneven}).rows
    assert rows[0][1] == rows[0][2]
    other = score.score(samples, samples, ADM, batch_size=8)
    with pytest.raises(ValueError, match="fd_random of a and of b can't be compared.*reference.na"):
        score.table({"a": one, "b": other})
    (folder / "no.json").write_text("[1]")
    with pytest.raises(ValueError, match="no.json is not a file of scores, as --json writes it"):
        score.read_scores(str(folder / "no.json"))


def test_any_batch_size_gives_the_same_scores(folder):
    samples, ref = str(folder / "samples.npz"), str(folder / "ref.npz")
    even, odd = (score.score(samples, ref, ADM, batch_size=size) for size in (8, 9))
    for name, entry in even.items():
        assert odd[name]["value"] == pytest.approx(entry["value"], rel=1e-4)


def test_what_can_not_be_scored(folder, tmp_path):
    samples, ref = str(folder / "samples.npz"), str(folder / "ref.npz")
    with np.load(samples) as file:
        images = file["arr_0"]
    np.savez(tmp_path / "one.npz", images[:1])
    np.savez(tmp_path / "small.npz", images[:, ::2, ::2])
    small, one = str(tmp_path / "small.npz"), str(tmp_path / "one.npz")
    for a, b, message in (
        (one, ref, "one.npz holds one image"),
        (samples, one, "one.npz holds one image"),
        (small, ref, "ref.npz is of images of 16 x 16 pixels, not of 8 x 8"),
        (samples, small, "small.npz holds images of 8 x 8 pixels, the samples are of 16 x 16"),
        (samples, "/no/ref.npz", "There is no reference '/no/ref.npz'"),
        ("/no/samples.npz", ref, "There is no file or folder '/no/samples.npz'"),
    ):
        with pytest.raises(ValueError, match=message):
            score.score(a, b, ADM, batch_size=8)
