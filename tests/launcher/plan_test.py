"""A plan knows what is left: what is recorded, what weights are still needed, what was lost."""

import pytest
from ml_collections import ConfigDict

from fsq_jax.launcher import plan, pool
from fsq_jax.launcher.plan import Run
from fsq_jax.runtime.files import append_json_line
from fsq_jax.runtime.user_error import UserError
from fsq_jax.runtime.workdir import save_config, save_results

WEIGHTS = "weights.bin"
TRAIN, EXPORT = ("results.json", ("train",)), (WEIGHTS, ("export",))


def leave(path, steps=20, evaluated=20, weights=False, checkpoint=0):
    """A run's folder as it is left behind."""
    save_config(str(path), ConfigDict({"stage": "tokenizer", "steps": steps}))
    save_results(str(path), {"x": {"value": 1.0, "protocol": {}, "step": evaluated}})
    if weights:
        (path / WEIGHTS).touch()
    if checkpoint:
        (path / "checkpoints" / str(checkpoint)).mkdir(parents=True)


@pytest.fixture
def runs():
    first = Run("a", (TRAIN, EXPORT), weights=WEIGHTS, rank=1)
    return [first, Run("b", (TRAIN,), needs=("a",), rank=2)]


def names(left):
    return [run.name for run in left]


def test_all_is_left_of_nothing_and_nothing_of_all(runs, tmp_path):
    left, wanted = plan.wanted_weights(str(tmp_path), runs)
    assert names(left) == ["a", "b"] and wanted == {"a"}
    leave(tmp_path / "a")
    leave(tmp_path / "b")
    left, wanted = plan.wanted_weights(str(tmp_path), runs)
    assert not left and not wanted  # the weights are gone, but nobody reads them any more


def test_a_run_is_recorded_with_the_results_of_its_last_step(runs, tmp_path):
    leave(tmp_path / "b", evaluated=10)
    assert not plan.recorded(str(tmp_path), runs[1])
    leave(tmp_path / "b", evaluated=20)
    assert plan.recorded(str(tmp_path), runs[1])


def test_a_run_without_evaluators_is_recorded_with_its_last_checkpoint(runs, tmp_path):
    config = ConfigDict({"stage": "tokenizer", "steps": 20, "evals": {}})
    save_config(str(tmp_path / "b"), config)
    assert not plan.recorded(str(tmp_path), runs[1])
    (tmp_path / "b" / "checkpoints" / "20").mkdir(parents=True)
    assert plan.recorded(str(tmp_path), runs[1])
    assert not plan.commands_left(str(tmp_path), runs[1], wanted=False)


def test_a_line_that_a_killed_launcher_left_half_is_written_over(tmp_path):
    assert pool.launches(str(tmp_path)) == []
    lines = [{"file": "results.json", "seconds": 1.5, "status": status} for status in (0, 3)]
    file = tmp_path / "launches.jsonl"
    append_json_line(file, lines[0])
    with open(file, "a") as half:
        half.write('{"file": "resu')
    assert pool.launches(str(tmp_path)) == lines[:1]
    append_json_line(file, lines[1])
    assert pool.launches(str(tmp_path)) == lines


@pytest.mark.parametrize(
    "checkpoint, expected",
    [
        (20, [EXPORT]),  # on the machine that trained it
        (10, [TRAIN, EXPORT]),  # a second training that was cut off
        (0, [TRAIN, EXPORT]),  # only its results were carried here
    ],
)
def test_weights_that_are_gone_are_made_again(runs, tmp_path, checkpoint, expected):
    leave(tmp_path / "a", checkpoint=checkpoint)
    left, wanted = plan.wanted_weights(str(tmp_path), runs)
    assert names(left) == ["a", "b"]
    assert plan.commands_left(str(tmp_path), runs[0], "a" in wanted) == expected
    assert plan.commands_left(str(tmp_path), runs[0], wanted=False) == []


def test_weights_that_are_there_are_read(runs, tmp_path):
    leave(tmp_path / "a", weights=True)
    left, _ = plan.wanted_weights(str(tmp_path), runs)
    assert names(left) == ["b"]


def test_runs_of_one_name_are_one_and_come_in_order(runs):
    long = Run("c", (TRAIN,), rank=1, gpu_hours=2.0)
    assert names(plan.merged([*runs, long, *runs])) == ["c", "a", "b"]
    with pytest.raises(UserError, match="Run 'b' needs 'a'"):
        plan.merged(runs[1:])
    assert names(plan.chosen([*runs, long], ["b"])) == ["a", "b"]
    with pytest.raises(UserError, match="begins with z"):
        plan.chosen(runs, ["z"])


def test_a_run_is_finished_when_its_last_step_is_saved_and_evaluated(tmp_path):
    save_config(str(tmp_path), ConfigDict({"stage": "x", "steps": 20, "evals": {"codebook": {}}}))
    assert not plan.finished(str(tmp_path))
    (tmp_path / "checkpoints" / "10").mkdir(parents=True)
    assert not plan.finished(str(tmp_path))
    (tmp_path / "checkpoints" / "20").mkdir()
    assert not plan.finished(str(tmp_path))
    save_results(str(tmp_path), {"a": {"value": 1.0, "protocol": {}, "step": 20}})
    assert plan.finished(str(tmp_path))
    save_config(str(tmp_path), ConfigDict({"stage": "x", "steps": 30, "evals": {}}))
    assert not plan.finished(str(tmp_path))
