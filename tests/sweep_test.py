"""A grid becomes runs that are checked first, and a table of means over seeds."""

import pytest

from fsq_jax import sweep
from fsq_jax.launcher import plan
from fsq_jax.runtime.files import write_json
from fsq_jax.runtime.user_error import UserError

CONFIG = "configs/maskgit_tokenizer.py:scale=smoke"
GRID = ["levels=8-6-5,4-3", "config.optim.learning_rate=1e-3,1e-4"]


def test_a_run_for_each_point_and_seed():
    runs = sweep.plan_runs(CONFIG, GRID, 2, "W", ["--config.steps=3"])
    assert len(runs) == 8 and len({run.name for run in runs}) == 8
    assert runs[1].name == "levels=8-6-5,learning_rate=1e-3,seed=1"
    ((file, command),) = runs[1].commands
    assert file == plan.RESULTS
    assert command[2].endswith("maskgit_tokenizer.py:scale=smoke,levels=8-6-5")
    assert command[3:] == (
        "--workdir=W/levels=8-6-5,learning_rate=1e-3,seed=1",
        "--config.seed=1",
        "--config.optim.learning_rate=1e-3",
        "--config.steps=3",
    )
    assert sweep.folder_name({"data": "folder:/a/b c"}) == "data=folder-a-b-c"


@pytest.mark.parametrize(
    "grid, message",
    [
        (["levels"], "is not NAME=VALUE,VALUE"),
        (["levels=4-3", "levels=5-3"], "of a name for itself"),
        (["level=4-3"], "'level' is unknown; did you mean 'levels'"),
        (["levels=1-3"], "levels"),
        (["config.optim.learning_rat=1"], "no 'optim.learning_rat'; did you mean"),
    ],
)
def test_mistakes_are_found_before_anything_runs(grid, message):
    with pytest.raises(ValueError, match=message):
        sweep.plan_runs(CONFIG, grid, 1, "W")


def test_the_table_has_means_over_the_seeds_that_are_done(tmp_path):
    runs = sweep.plan_runs(CONFIG, ["levels=8-6-5,4-3"], 2, str(tmp_path))
    for run, value in zip(runs[:3], (0.5, 0.7, 0.25), strict=True):
        result = {"value": value, "protocol": {"size": 32, "seed": 1}, "step": 20}
        write_json(tmp_path / run.name / plan.RESULTS, {"codebook/usage": result})
    table = sweep.table(str(tmp_path), runs)
    assert table.header == ("levels", "codebook usage ↑", "seeds")
    assert table.rows == [("8-6-5", "60.0% ± 14.1%", "2"), ("4-3", "25.0%", "1")]
    result = {"value": 1.0, "protocol": {"size": 64}, "step": 20}
    write_json(tmp_path / runs[3].name / plan.RESULTS, {"codebook/usage": result})
    with pytest.raises(UserError, match="can't be compared"):
        sweep.table(str(tmp_path), runs)


def test_runs_are_made_and_tabled(tmp_path, monkeypatch, capsys):
    def command(run):
        result = {"codebook/usage": {"value": 0.5, "protocol": {}, "step": 1}}
        code = f"import json; json.dump({result}, open('{tmp_path}/{run.name}/results.json', 'w'))"
        return plan.Run(run.name, ((plan.RESULTS, ("-c", code)),), run.facts)

    runs = [command(run) for run in sweep.plan_runs(CONFIG, ["levels=4-3,5-3"], 1, str(tmp_path))]
    fails = ((plan.RESULTS, ("-c", "raise SystemExit(3)")),)
    runs[1] = plan.Run(runs[1].name, fails, runs[1].facts)
    (failed,) = sweep.sweep(runs, str(tmp_path), per_gpu=2)
    assert failed.startswith("levels=5-3,seed=0 failed with exit status 3")
    assert (tmp_path / "table.md").read_text() == capsys.readouterr().out
    assert "| 4-3    | 50.0%            | 1     |" in (tmp_path / "table.md").read_text()
