"""Batches add up to the statistics of all rows, with those that are kept in their order."""

import numpy as np
import pytest

from fsq_jax.scoring import accumulator, reference_file
from fsq_jax.scoring.accumulator import Statistics


@pytest.mark.parametrize("block", [1, 7, 1_000])
def test_batches_add_up(block, monkeypatch):
    monkeypatch.setattr(accumulator, "_BLOCK", block)
    rng = np.random.default_rng(0)
    rows, logits = rng.normal(size=(20, 4)), rng.normal(size=(20, 3))
    mask = rng.random(20) < 0.7
    seen = Statistics.empty({"pool": 4}, {"pool": 5, "logits": 0})
    for i in range(0, 20, 6):
        part = slice(i, i + 6)
        seen = seen.add({"pool": rows[part], "logits": logits[part]}, mask[part])
    assert seen.count == mask.sum()
    moments = seen.flush().moments["pool"]
    np.testing.assert_allclose(moments.mean, rows[mask].mean(0))
    np.testing.assert_allclose(moments.covariance, np.cov(rows[mask].T))
    np.testing.assert_array_equal(seen.rows("pool"), rows[mask][:5])
    np.testing.assert_array_equal(seen.rows("logits"), logits[mask])


def test_batches_wait_until_there_are_two_blocks(monkeypatch):
    monkeypatch.setattr(accumulator, "_BLOCK", 4)
    seen = Statistics.empty({"pool": 2}, {})
    waiting = []
    for _ in range(6):
        seen = seen.add({"pool": np.ones((2, 2))}, np.ones(2, bool))
        waiting.append(len(seen.pending))
    assert waiting == [1, 2, 3, 2, 3, 2]
    assert seen.moments["pool"].count == 8 and seen.count == 12


def test_adding_changes_nothing_that_was_there():
    first = Statistics.empty({"pool": 2}, {"pool": 0})
    first.add({"pool": np.ones((3, 2))}, np.ones(3, bool))
    assert first.count == 0 and first.kept == {"pool": ()}


def test_files_give_back_what_they_were_given(tmp_path):
    rng = np.random.default_rng(0)
    seen = Statistics.empty({"pool": 4, "spatial": 3}, {"pool": 6})
    batch = {"pool": rng.normal(size=(9, 4)), "spatial": rng.normal(size=(9, 3))}
    seen = seen.add(batch, np.ones(9, bool)).with_source("data", split="train", subset="first 6")
    protocol = {"reference": vars(seen.origin)}
    seen.save(tmp_path / "new" / "a.npz", protocol)
    saved = reference_file.load(tmp_path / "new" / "a.npz")
    assert saved.record == protocol and not saved.has_images
    assert saved.statistics.origin == seen.origin and saved.statistics.count == 9
    np.testing.assert_array_equal(saved.statistics.rows("pool"), seen.rows("pool"))
    for name in ("pool", "spatial"):
        np.testing.assert_allclose(
            saved.statistics.moments[name].scatter, seen.flush().moments[name].scatter
        )
    seen.save(tmp_path / "b.npz", protocol, np.zeros((2, 4, 4, 3), np.uint8))
    assert reference_file.names(tmp_path / "b.npz") == {
        "count",
        "protocol",
        "mu",
        "sigma",
        "mu_s",
        "sigma_s",
        "arr_0",
    }
