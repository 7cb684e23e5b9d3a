"""What keeps two numbers apart, and what does not."""

import dataclasses
import json

import pytest

from fsq_jax.features import resizing
from fsq_jax.features.inception import DTYPES, SCALINGS
from fsq_jax.metrics import inception_score
from fsq_jax.scoring import protocols


@pytest.mark.parametrize("protocol", protocols.NAMED.values(), ids=protocols.NAMED)
def test_named_protocols_name_what_there_is(protocol):
    assert protocols.named(protocol.name) is protocol
    assert protocol.resize in resizing.METHODS and protocol.scaling in SCALINGS
    assert protocol.dtype in DTYPES and protocol.rounding == "uint8"
    assert protocol.inception_score in ("", *inception_score.CUTS)


def test_the_papers_protocol():
    adm = protocols.named("adm")
    assert (adm.network, adm.resize, adm.num_samples) == ("inception", "tf1", 50_000)
    assert adm.spatial and adm.precision_recall and not adm.kernel_distance
    assert adm.precision_images == 10_000 and adm.inception_score == "blocks"


def test_unknown_protocols_are_refused():
    with pytest.raises(ValueError, match="no protocol 'ADM'; choose one of adm, torch-fidelity"):
        protocols.named("ADM")


def test_what_only_inception_has_is_not_measured_over_other_features():
    adm = protocols.named("adm")
    other = adm.over("random")
    assert (other.network, other.spatial, other.inception_score) == ("random", False, "")
    assert other.precision_recall
    assert adm.over("inception") == adm


def test_a_record_is_json_with_every_field():
    adm = protocols.named("adm").replace(sampling={"guidance": 0.2}, seed=3, kernel_subset=500)
    protocol = protocols.as_record(adm)
    assert json.loads(json.dumps(protocol)) == protocol
    renamed = {
        "name",
        "network",
        "weights_sha256",
        "resize",
        "scaling",
        "dtype",
        "rounding",
        "num_samples",
    }
    fields = {field.name for field in dataclasses.fields(adm)}
    assert fields - renamed <= set(protocol)
    assert set(protocol["features"]) == {
        "name",
        "weights_sha256",
        "input",
        "scaling",
        "dtype",
        "rounding",
    }
    assert protocol["protocol"] == "adm" and protocol["num_images"] == 50_000


@pytest.mark.parametrize(
    "change",
    [
        {"network": "random"},
        {"weights_sha256": "ab"},
        {"resize": "bilinear"},
        {"dtype": "tf32"},
        {"scaling": "127.5"},
        {"rounding": "none"},
        {"num_samples": 10_000},
        {"class_balance": "data"},
        {"reference": protocols.Reference("tfds:imagenet2012", "validation")},
        {"inception_score": "shuffled"},
        {"precision_images": 0},
    ],
)
def test_how_it_is_measured_must_agree(change):
    adm = protocols.named("adm")
    one, other = protocols.as_record(adm), protocols.as_record(adm.replace(**change))
    assert protocols.differing(one, other)
    with pytest.raises(ValueError, match="fid of a and of b can't be compared"):
        protocols.check_comparable("fid", {"a": one, "b": other})


def test_what_is_measured_may_differ():
    adm = protocols.named("adm")
    one = protocols.as_record(adm.replace(sampling={"guidance": 0.2}, seed=1)) | {"stage_1": "a"}
    other = protocols.as_record(adm.replace(sampling={"num_steps": 8}, seed=2)) | {
        "codebook_size": 9
    }
    assert protocols.differing(one, other) == {}
    protocols.check_comparable("fid", {"a": one, "b": other})


def test_keys_that_one_of_the_two_lacks_differ():
    assert protocols.differing({"a": {"b": 1}}, {"c": (1, 2)}) == {
        "a.b": (1, None),
        "c": (None, [1, 2]),
    }
    assert protocols.differing({"c": [1, 2]}, {"c": (1, 2)}) == {}  # as JSON gives them back
