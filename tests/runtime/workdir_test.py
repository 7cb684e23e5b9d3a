"""Results of a sweep, of other steps and of other protocols stand side by side."""

import json

import pytest

from fsq_jax.runtime import workdir


def result(value, step=10, guidance=None, **protocol):
    made = {"value": value, "protocol": {"data": "scenes"} | protocol, "step": step}
    if guidance is None:
        return made
    made["protocol"]["sampling"] = {"guidance": guidance}
    return made | {"overrides": {"sampling.guidance": guidance}}


def test_a_sweep_keeps_a_result_of_each_setting(tmp_path):
    run = str(tmp_path)
    assert workdir.load_results(run) == {}
    workdir.save_results(run, {"sampling/fid": result(5.0, sampling={"guidance": 0.2})})
    for guidance, value in ((0.0, 6.0), (0.1, 5.5), (0.3, 7.0), (0.1, 5.4)):
        workdir.save_results(run, {"sampling/fid": result(value, guidance=guidance)})
    loaded = workdir.load_results(run)
    assert loaded["sampling/fid"]["value"] == 5.0  # the run's own
    swept = {
        r["protocol"]["sampling"]["guidance"]: r["value"]
        for r in workdir.every_result(loaded, "sampling/fid")
    }
    assert swept == {0.0: 6.0, 0.1: 5.4, 0.2: 5.0, 0.3: 7.0}  # 0.1 was measured again
    assert workdir.metric_values(loaded) == {"sampling/fid": 5.0}
    assert json.loads((tmp_path / "results.json").read_text()) == loaded


def test_the_latest_step_without_overrides_is_the_runs_own(tmp_path):
    run = str(tmp_path)
    workdir.save_results(run, {"a": result(1.0, step=20, guidance=0.5)})
    assert workdir.load_results(run)["a"]["value"] == 1.0  # there is no other
    assert not workdir.is_evaluated(run, 20)
    workdir.save_results(run, {"a": result(2.0, step=20), "b": result(9.0, step=20)})
    workdir.save_results(run, {"a": result(3.0, step=10)})  # an older checkpoint, afterwards
    loaded = workdir.load_results(run)
    assert loaded["a"]["value"] == 2.0 and len(loaded["a"]["variants"]) == 2
    assert "variants" not in loaded["b"]
    assert workdir.is_evaluated(run, 20) and workdir.is_evaluated(run, 10)
    assert not workdir.is_evaluated(run, 30)
    of_step = workdir.of_step(loaded, 10)
    assert {name: r["value"] for name, r in of_step.items()} == {"a": 3.0}
    # The same with another protocol: the last one written, and nothing is lost.
    workdir.save_results(run, {"a": result(4.0, step=20, device="another")})
    values = [r["value"] for r in workdir.every_result(workdir.load_results(run), "a")]
    assert values == [1.0, 3.0, 2.0, 4.0]
    again = dict(workdir.load_results(run))
    workdir.save_results(run, again)  # a file taken into itself changes nothing
    assert workdir.load_results(run) == again


@pytest.mark.parametrize(
    "overrides, kept",
    [
        ({}, None),
        ({"data.data_dir": "/x", "data.workers": 3}, None),
        ({"data.data_dir": "/x", "sampling.guidance": 1.0}, {"sampling.guidance": 1.0}),
    ],
)
def test_where_data_lies_is_no_setting(overrides, kept):
    marked = workdir.with_overrides({"a": result(1.0)}, overrides)
    assert marked["a"].get("overrides") == kept
