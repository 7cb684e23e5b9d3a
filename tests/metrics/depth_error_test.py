"""Depth errors of pixels that one can work out by hand."""

import numpy as np
import pytest

from fsq_jax.metrics.depth_error import depth_error


def test_errors_by_hand():
    truth = np.array([[1.0, 2.0], [4.0, 5.0]], np.float32)
    prediction = np.array([[1.2, 1.0], [4.0, 10.0]], np.float32)
    error = depth_error(prediction, truth)
    assert error["rmse"] == pytest.approx(np.sqrt((0.04 + 1 + 0 + 25) / 4))
    assert error["abs_rel"] == pytest.approx((0.2 + 0.5 + 0 + 1) / 4)
    assert error["log10"] == pytest.approx((np.log10(1.2) + 2 * np.log10(2)) / 4)
    # Ratios 1.2, 2, 1, 2 against 1.25, 1.5625, 1.953.
    assert [error[f"delta{k}"] for k in (1, 2, 3)] == [0.5, 0.5, 0.5]
    assert depth_error(truth * 1.3, truth)["delta1"] == 0
    assert depth_error(truth * 1.3, truth)["delta2"] == 1


def test_only_pixels_whose_depth_is_known_count():
    truth = np.array([0.0, 0.001, 10.0, 12.0, 3.0], np.float64)
    wild = np.array([9.0, 9.0, 1.0, 1.0, 3.5])
    assert depth_error(wild, truth)["rmse"] == pytest.approx(0.5)
    nothing = depth_error(wild[:2], truth[:2])
    assert set(nothing) == set(depth_error(wild, truth)) and all(map(np.isnan, nothing.values()))


def test_what_can_not_be_compared():
    with pytest.raises(ValueError, match=r"\(2,\) and \(3,\)"):
        depth_error(np.ones(2), np.ones(3))
    with pytest.raises(ValueError, match="must be above 0; the least is 0"):
        depth_error(np.array([0.0, 1.0]), np.array([1.0, 1.0]))
