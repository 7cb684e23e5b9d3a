"""Measurements of speed are of benchmarks and configs that there are, and are not made twice."""

import importlib.util
import json
import time

import pytest

from experiments.benchmarks import speeds, train_step

STEPS = [m for m in speeds.MEASUREMENTS if m.module == "train_step" and m.name != "ceilings"]


def test_benchmarks_are_there():
    for measurement in speeds.MEASUREMENTS:
        assert importlib.util.find_spec(f"experiments.benchmarks.{measurement.module}")
    names = [m.name for m in speeds.MEASUREMENTS]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("measurement", STEPS, ids=lambda m: m.name)
def test_steps_are_of_configs_that_build(measurement):
    config, _ = train_step.load_config(measurement.arguments[-1])
    assert config.model.dtype == "bfloat16" and config.batch_size % config.accumulate == 0


def test_a_command_is_ended_with_all_that_it_started(tmp_path):
    with open(tmp_path / "log", "w") as log:
        begin = time.monotonic()
        assert speeds.run(["sh", "-c", "sleep 60 & wait"], 1, log, None) == "out of time"
        assert time.monotonic() - begin < 30
        assert speeds.run(["sh", "-c", "exit 3"], 30, log, None) == 3


def test_what_came_to_its_end_is_kept_and_not_measured_again(tmp_path, monkeypatch, capsys):
    begun = []

    def run(command, *_):
        name = command[2].rpartition(".")[2]
        begun.append(name)
        result = {"error": "out of memory"} if name == "fails" else {"step_ms": 1.0}
        path = command[-1].removeprefix("--out=")
        with open(path, "w") as file:
            file.write(json.dumps(result))
        return 0

    monkeypatch.setattr(speeds, "run", run)
    monkeypatch.setattr(
        speeds,
        "MEASUREMENTS",
        tuple(
            speeds.Measurement(name, name, (), seconds)
            for name, seconds in (("works", 10), ("fails", 10), ("long", 1_000))
        ),
    )
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    flags = type("Flags", (), {"out": str(tmp_path), "seconds": 60})
    monkeypatch.setattr(speeds.flags, "FLAGS", flags)
    speeds.main([])
    assert begun == ["works", "fails"] and "not begun: long" in capsys.readouterr().out
    assert [p.name for p in tmp_path.glob("*.jsonl")] == ["works.jsonl"]
    speeds.main([])
    assert begun == ["works", "fails", "fails"]
