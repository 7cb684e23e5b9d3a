"""The scorer on a network that is small, with Inception's outputs: all metrics, files, refusals."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from fsq_jax.features.inception import Features
from fsq_jax.features.network import Network
from fsq_jax.metrics import frechet, inception_score, precision_recall
from fsq_jax.runtime import manifest, sharding
from fsq_jax.scoring import protocols, reference_file, scorer
from fsq_jax.scoring.scorer import Scorer


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """A network of 5 pool features, 3 spatial ones and 4 logits."""

    def load(protocol, weights):
        def apply(variables, images_BHWC):
            x = images_BHWC.reshape(len(images_BHWC), -1)[:, :12] / 255
            x = x @ variables
            return Features(x[:, :5], x[:, 5:8], x[:, 8:12], x[:, 8:12])

        weights = np.random.default_rng(1).normal(size=(12, 12)).astype(np.float32)
        return Network(apply, weights, "inception-random", "ab", "tf1", 5)

    monkeypatch.setattr(scorer, "_load", load)
    monkeypatch.setattr(scorer, "SPATIAL_FEATURES", 3)


def make(**changes):
    adm = protocols.named("adm").over("inception-random").replace(**changes)
    return Scorer(sharding.make_mesh(), adm)


def images(seed, count=40):
    return np.random.default_rng(seed).integers(0, 256, (count, 2, 2, 3), np.uint8)


def gathered(of, pictures, reference=False, rows=16):
    blocks = (pictures[i : i + rows] for i in range(0, len(pictures), rows))
    return of.add_blocks(of.empty(reference), blocks, rows)


def outputs(pictures):
    network = scorer._load(None, "")
    return network.apply(network.variables, pictures.astype(np.float32))


def test_all_metrics_are_those_of_all_images_at_once():
    adm, (a, b) = make(), (images(0), images(1, 30))
    values = adm.measure(gathered(adm, a), gathered(adm, b, reference=True))
    one, other = outputs(a), outputs(b)

    def distance(x, y):
        x, y = np.float64(x), np.float64(y)
        return frechet.frechet_distance(x.mean(0), np.cov(x.T), y.mean(0), np.cov(y.T))

    precision, recall = precision_recall.precision_recall(one.pool_BF, other.pool_BF)
    name = "_inception-random"
    assert values == pytest.approx(
        {
            f"fd{name}": distance(one.pool_BF, other.pool_BF),
            f"sfid{name}": distance(one.spatial_BF, other.spatial_BF),
            f"inception_score{name}": inception_score.inception_score(one.logits_BV)[0],
            f"precision{name}": precision,
            f"recall{name}": recall,
        },
        rel=1e-4,
    )


def test_a_reference_keeps_what_its_metrics_read():
    few = make(precision_images=7)
    assert few.empty(reference=True).keep == {"pool": 7}
    assert gathered(few, images(0), reference=True).rows("pool").shape == (7, 5)
    kid = make(precision_images=7, kernel_distance=True)
    assert gathered(kid, images(0), reference=True).rows("pool").shape == (40, 5)
    bare = make(precision_recall=False, inception_score="")
    assert bare.empty().keep == {}


def test_floats_are_rounded_as_files_would():
    adm, pictures = make(), images(0, 8)
    off = pictures / np.float32(255) + np.float32(0.3 / 255)
    for rounding, same in (("uint8", True), ("none", False)):
        of = make(rounding=rounding)
        mask = jnp.ones(8, bool)
        moved = of.add(of.empty(), jnp.asarray(off).clip(0, 1), mask).rows("pool")
        still = adm.add(adm.empty(), jnp.asarray(pictures), mask).rows("pool")
        assert np.allclose(moved, still, atol=1e-6) == same


def test_nan_images_are_refused():
    adm = make()
    seen = adm.add(adm.empty(), jnp.full((8, 2, 2, 3), jnp.nan), jnp.ones(8, bool))
    with pytest.raises(ValueError, match="8 of 8 rows of features have NaN or infinity"):
        seen.flush()


def test_files_of_adm_are_read_as_they_are(tmp_path):
    adm, b = make(), images(1, 30)
    of = outputs(b)
    arrays = {"mu": of.pool_BF.mean(0), "sigma": np.cov(of.pool_BF.T)}
    arrays |= {"mu_s": of.spatial_BF.mean(0), "sigma_s": np.cov(of.spatial_BF.T)}
    np.savez(tmp_path / "adm.npz", arr_0=b, **arrays)
    real = adm.load_reference(str(tmp_path / "adm.npz"), 16)
    samples = gathered(adm, images(0))
    own = adm.measure(samples, gathered(adm, b, reference=True))
    assert adm.measure(samples, real) == pytest.approx(own, rel=1e-4)
    assert real.origin == protocols.Reference(
        "adm.npz", "", 0, manifest.sha256(tmp_path / "adm.npz"), "arr_0"
    )
    np.savez(tmp_path / "no_images.npz", **arrays)
    with pytest.raises(ValueError, match="has no images .arr_0., for precision and recall"):
        adm.load_reference(str(tmp_path / "no_images.npz"))
    np.savez(tmp_path / "no_spatial.npz", mu=arrays["mu"], sigma=arrays["sigma"])
    with pytest.raises(ValueError, match="no statistics of the spatial features, for sFID"):
        adm.load_reference(str(tmp_path / "no_spatial.npz"))
    np.savez(tmp_path / "wide.npz", mu=np.zeros(9), sigma=np.eye(9))
    with pytest.raises(ValueError, match="is of 9 pool features, inception-random has 5"):
        make(spatial=False).load_reference(str(tmp_path / "wide.npz"))


def test_references_of_another_protocol_are_refused(tmp_path):
    adm, path = make(), str(tmp_path / "ref.npz")
    seen = gathered(adm, images(0), reference=True).with_source("data", split="train")
    seen.save(path, adm.record(seen, seen))
    again = adm.load_reference(path)
    assert again.origin.split == "train" and again.origin.num_images == 40
    np.testing.assert_array_equal(again.rows("pool"), seen.rows("pool"))
    message = "another protocol .features.dtype: 'bfloat16' here, 'float32' there"
    with pytest.raises(ValueError, match=message):
        make(dtype="bfloat16").load_reference(path)


def test_files_that_are_no_reference(tmp_path):
    for name, content, message in (
        ("none", None, "There is no reference"),
        ("text", b"hello", "is not a whole .npz file"),
    ):
        if content:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=message):
            reference_file.load(tmp_path / name)
    np.savez(tmp_path / "images.npz", images(0))
    with pytest.raises(ValueError, match=r"has no mu and sigma, only \['arr_0'\]; build a ref"):
        reference_file.load(tmp_path / "images.npz")


def test_what_is_told_is_what_was_measured():
    adm = make()
    seen = gathered(adm, images(0))
    real = gathered(adm, images(1), reference=True).with_source("data", split="train")
    protocol = json.loads(json.dumps(adm.record(seen, real, class_balance="data", seed=3)))
    assert protocol["num_images"] == protocol["reference"]["num_images"] == 40
    assert protocol["reference"]["name"] == "data" and protocol["seed"] == 3
    assert protocol["features"]["weights_sha256"] == "ab"
