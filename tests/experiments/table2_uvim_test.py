"""Table 2 asks for runs that the configs can give, and shows what they left beside the paper."""

import pytest

from configs import uvim_base, uvim_lm
from experiments import entries, table2_claims, table2_uvim
from experiments.claims import CONFIRMED, NOT_RUN, OPEN, REFUTED
from experiments.options import Options
from fsq_jax.launcher import plan

MODULES = {"uvim_base.py": uvim_base, "uvim_lm.py": uvim_lm}


@pytest.mark.parametrize("scale", ["paper", "bench", "smoke"])
def test_all_rows_are_asked_for_with_every_seed(scale):
    options = Options(scale=scale, workdir="runs/x", seeds=3, changes=("--config.fsdp=True",))
    runs = [run for run in plan.merged(table2_uvim.runs(options)) if run.facts]
    assert len(runs) == 9 * (1 + 3)
    for run in runs:
        _, (_, program, config, workdir, *changes) = run.commands[0]
        assert program == "fsq_jax.train" and workdir == f"--workdir=runs/x/{run.name}"
        assert changes[-1] == "--config.fsdp=True"
        assert f"--config.seed={run.facts['seed']}" in changes
        file, _, argument = config.removeprefix("--config=configs/").partition(":")
        built = MODULES[file].get_config(argument)
        assert built.task.name == run.facts["task"]
        if run.facts["stage"] == "base":
            assert built.quantizer.name == ("fsq" if run.facts["quantizer"] == "fsq" else "vq_ema")
            assert built.model.encoder_context == ("no_context" not in run.facts["variant"])
            if run.facts["variant"] == "vq_no_splitting":
                assert built.quantizer.split_threshold == 0
        else:
            assert run.needs[0] == f"{run.facts['task']}_{run.facts['variant']}_base"


def entry(task, variant, stage, seed=0, **metrics):
    return {
        "run": f"{task}_{variant}_{stage}_s{seed}",
        "task": task,
        "variant": variant,
        "stage": stage,
        "seed": seed,
    } | metrics


def test_a_table_shows_deviations_and_the_paper():
    found = [entry("depth", "fsq", "base", **{"codebook/usage": 0.5, "depth/rmse": 0.125})]
    found += [entry("depth", "fsq", "lm", s, **{"depth/rmse": 0.4 + 0.1 * s}) for s in range(3)]
    header, _, fsq, vq, _ = table2_uvim.table(found, "depth").text().splitlines()
    assert "stage I: codebook usage" in header and "stage II: depth RMSE, m" in header
    assert [cell.strip() for cell in fsq.strip("|").split("|")] == [
        "FSQ",
        "50.0%",
        "0.125",
        "0.500 ± 0.100",
        "3",
        "0.473 ± 0.012",
        "99%",
    ]
    assert vq.count("not run") == 3 and "0.468 ± 0.012" in vq


def test_claims_are_judged_by_their_rules():
    def verdict(found, number):
        return table2_claims.CLAIMS[number].judge(found).verdict

    assert [verdict([], number) for number in range(3)] == [NOT_RUN] * 3
    usage = [entry("depth", "vq", "base", **{"codebook/usage": 0.9})]
    without = entry("depth", "vq_no_splitting", "base", **{"codebook/usage": 0.01})
    assert verdict([*usage, without], 1) == CONFIRMED
    assert verdict([*usage, without | {"codebook/usage": 0.95}], 1) == REFUTED
    assert verdict([*usage, without | {"codebook/usage": 0.4}], 1) == OPEN
    values = {"fsq": (50, 51, 52), "fsq_no_context": (48, 49, 50), "vq": (50, 51, 52)}
    values["vq_no_context"] = (40, 41, 42)
    context = [
        entry("panoptic", variant, "lm", seed, **{"panoptic/pq": value})
        for variant, numbers in values.items()
        for seed, value in enumerate(numbers)
    ]
    assert verdict(context, 2) == CONFIRMED
    colour = [
        entry("colorization", v, "lm", s, **{"colorization/fid5k": x + s / 100})
        for v, x in (("fsq", 17.5), ("vq", 16.9))
        for s in range(3)
    ]
    assert verdict(colour, 0) == CONFIRMED
    assert entries.spread([1.0]).text() == "1" and entries.spread([]) is None
