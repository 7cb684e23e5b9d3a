"""What is measured of Inception, what is recorded where a tool is absent, and the small pieces."""

import sys

import numpy as np

from experiments.benchmarks import fid_sensitivity, inception_parity, inception_speed


def test_speed_measures_each_tool_at_each_batch():
    plan = inception_speed.plan([64, 128], **inception_speed.SMOKE)
    features = [(m["tool"], m["dtype"], m["batch"]) for m in plan if m["kind"] == "features"]
    assert len(features) == len(set(features)) == 7 * 2
    assert [m["kind"] for m in plan[14:]] == ["fid"] * 3 + ["precision_recall"]
    assert {m["batch"] for m in inception_speed.plan([64], smoke=True) if "batch" in m} == {2}


def test_an_absent_tool_is_not_run(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    one = dict(kind="features", tool="torch-fidelity", dtype="float32", batch=1, side=8, seconds=0)
    assert "torch" in inception_speed.measure(one)["not_run"]


def test_precision_and_recall_are_timed():
    one = dict(kind="precision_recall", tool="fsq_jax", dtype="float32", samples=9, reference=7)
    assert inception_speed.measure(one)["seconds"] > 0


def test_differences_are_relative():
    want = np.array([[1.0, -2.0]])
    got = inception_parity.difference(want + [[0.0, 0.02]], want)
    np.testing.assert_allclose(got["max_error_over_max"], 0.01)
    np.testing.assert_allclose(got["norm_of_error_over_norm"], 0.02 / 5**0.5)
    got = inception_parity.compare_metrics({"fid": 1.01}, {"fid": 1.0})
    np.testing.assert_allclose(got["fid"]["relative_error"], 0.01)


def test_changes_are_of_the_base():
    assert all(set(change) <= set(fid_sensitivity.BASE) for change in fid_sensitivity.CHANGES)
    assert not fid_sensitivity.runnable("tf32") and fid_sensitivity.runnable("bfloat16")
