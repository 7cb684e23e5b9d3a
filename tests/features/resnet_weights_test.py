import runpy
from pathlib import Path

import jax
import numpy as np
import pytest

from fsq_jax.features import resnet

REFERENCE = Path(__file__).parent / "reference"
INPUTS = runpy.run_path(str(REFERENCE / "inputs.py"))


@pytest.fixture
def state():
    return INPUTS["resnet_state_dict"]()


@pytest.mark.parametrize("stride_in", ["3x3", "1x1"])
def test_agrees_with_torch(stride_in, state, tmp_path):
    np.savez(tmp_path / "resnet.npz", **state)
    module, variables, _ = resnet.load(tmp_path / "resnet.npz", stride_in)
    assert module.stage_sizes == (1, 2, 1, 1) and module.width == 4
    maps, logits = jax.jit(module.apply)(variables, INPUTS["photo_like"](2, 64))
    expected = np.load(REFERENCE / "resnet.npz")
    np.testing.assert_allclose(maps, expected[f"map_{stride_in}"], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(logits, expected[f"logits_{stride_in}"], rtol=1e-4, atol=1e-4)


def test_a_missing_tensor_is_named(state, tmp_path):
    del state["layer2.1.bn2.running_var"]
    np.savez(tmp_path / "x.npz", **state)
    with pytest.raises(ValueError, match="no tensor 'layer2.1.bn2.running_var'"):
        resnet.load(tmp_path / "x.npz")


def test_a_tensor_too_many_is_named(state, tmp_path):
    np.savez(tmp_path / "x.npz", **state, extra=np.zeros(3))
    with pytest.raises(ValueError, match="extra"):
        resnet.load(tmp_path / "x.npz")


def test_a_wrong_shape_is_named(state, tmp_path):
    state["layer1.0.conv2.weight"] = state["layer1.0.conv2.weight"][:, :2]
    np.savez(tmp_path / "x.npz", **state)
    with pytest.raises(ValueError, match=r"stage0_block0/conv2/kernel has shape \(3, 3, 2, 4\)"):
        resnet.load(tmp_path / "x.npz")
