"""Table 2 asks for runs that the configs can give, shows what they left, and survives failures."""

import json
import subprocess
import sys

import pytest
from ml_collections import ConfigDict

from experiments import table2_uvim
from fsq_jax.configs import uvim_base, uvim_lm
from fsq_jax.runtime.workdir import save_config, save_results

MODULES = {"uvim_base.py": uvim_base, "uvim_lm.py": uvim_lm}


@pytest.mark.parametrize("row", table2_uvim.ROWS, ids=lambda row: row.name)
@pytest.mark.parametrize("scale", ["paper", "bench", "smoke"])
def test_commands_name_configs_that_build(row, scale):
    commands = table2_uvim.commands("runs/x", row, scale, "data=arrays:data/y", ["--config.seed=1"])
    base, lm, samples = commands.items()
    for (done, command), module in zip((base, lm), MODULES, strict=True):
        _, program, config, workdir, change = command
        assert (program, change) == ("fsq_jax.train", "--config.seed=1")
        assert done == f"{workdir.removeprefix('--workdir=')}/results.json"
        file, _, argument = config.removeprefix("--config=configs/").partition(":")
        assert file == module
        config = MODULES[file].get_config(argument)
        assert (config.task.name, config.data.source) == (row.task, "arrays:data/y")
    assert config.stage_1.workdir == f"runs/x/{row.name}_base"
    assert config.stage_1.quantizer.name == ("fsq" if "fsq" in row.variant else "vq_ema")
    assert config.stage_1.model.encoder_context == ("no_context" not in row.variant)
    assert samples[1][1] == "fsq_jax.sample" and samples[0].startswith(f"runs/x/{row.name}_lm/")


def test_all_rows_of_the_paper_are_there():
    assert len(table2_uvim.ROWS) == len({row.name for row in table2_uvim.ROWS}) == 9
    assert [row.name for row in table2_uvim.chosen_rows(["depth_vq"])] == ["depth_vq"]
    with pytest.raises(ValueError, match=r"There are no rows \['depth_lfq'\]"):
        table2_uvim.chosen_rows(["depth_lfq"])


def leave(run, steps, results):
    """A run as it is left behind."""
    save_config(str(run), ConfigDict({"stage": "uvim_lm", "steps": steps}))
    save_results(str(run), {
        name: {"value": value, "protocol": {}, "step": step}
        for name, (value, step) in results.items()
    })
    return str(run / "results.json")


def test_a_run_is_finished_with_the_results_of_its_last_step(tmp_path):
    path = leave(tmp_path / "a", 20, {"depth/rmse": (1.0, 10)})
    assert not table2_uvim.finished(path)
    assert table2_uvim.finished(leave(tmp_path / "a", 20, {"depth/rmse": (1.0, 20)}))
    assert not table2_uvim.finished(str(tmp_path / "b" / "results.json"))


def test_tables_show_both_stages_and_the_paper(tmp_path):
    rows = table2_uvim.chosen_rows(["depth_fsq", "depth_vq", "panoptic_fsq"])
    leave(tmp_path / "depth_fsq_base", 20, {"depth/rmse": (0.125, 20), "codebook/usage": (1, 20)})
    leave(tmp_path / "depth_fsq_lm", 20, {"depth/rmse": (0.5, 20)})
    text = table2_uvim.write(str(tmp_path), str(tmp_path / "out"), rows, ["x failed"])
    header, _, fsq, vq = text.split("\n\n")[0].splitlines()
    assert "stage I: codebook usage" in header and "stage II: depth RMSE, m" in header
    assert [cell.strip() for cell in fsq.strip("|").split("|")] == [
        "FSQ", "100.0%", "0.125", "0.500", "0.473 ± 0.012", "99%"
    ]
    assert vq.count("not run") == 3 and "0.468 ± 0.012" in vq
    saved = json.loads((tmp_path / "out" / "table.json").read_text())
    assert saved["rows"]["depth_fsq"]["lm"]["depth/rmse"]["value"] == 0.5
    assert saved["failed"] == ["x failed"]
    assert (tmp_path / "out" / "depth_fsq_base" / "results.json").exists()


def test_what_is_done_is_skipped_and_a_failure_is_reported(tmp_path):
    (row,) = table2_uvim.chosen_rows(["depth_fsq"])
    done, missing = tmp_path / "done.npz", tmp_path / "run" / "missing.npz"
    done.touch()
    todo = {str(done): ["-c", "raise SystemExit(1)"], str(missing): ["-c", "print(5); exit(3)"]}
    problem = table2_uvim.train(str(tmp_path), row, todo, {})
    assert problem.startswith("depth_fsq failed with exit status 3; see ")
    assert (tmp_path / "run" / "log.txt").read_text().strip() == "5"


def test_the_program_prints_its_commands():
    done = subprocess.run(
        [sys.executable, "-m", "experiments.table2_uvim", "--scale=paper", "--commands",
         "--rows=depth_fsq"],
        capture_output=True, text=True,
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 3 and "scale=paper,task=depth" in done.stdout
