"""The comparison with torch: rows are written as they come, missing ones first, nothing hangs."""

import json
import time
from types import SimpleNamespace

import pytest

from experiments.benchmarks import against_torch, apart, train_step
from fsq_jax.runtime.user_error import UserError
from tests import tiny

GOOD = {"images_per_second": 12.0, "device": "H100"}, {"images_per_second": 10.0}
ROW = {"ours": 12.0, "torch": 10.0, "ratio": 1.2, "device": "H100"}


@pytest.fixture
def fill(tmp_path, monkeypatch):
    """(rows, results of the programs) -> programs as they were begun; the file is `fill.path`."""
    path = tmp_path / "new" / "table.json"

    def fill(rows, results, dry_run=False):
        begun = []

        def program(module, arguments, timeout):
            assert 0 < timeout <= 100
            begun.append(module)
            return results.pop(0)

        monkeypatch.setattr(apart, "run", program)
        monkeypatch.setattr(against_torch, "_ROWS", SimpleNamespace(value=rows))
        monkeypatch.setattr(against_torch, "_DRY_RUN", SimpleNamespace(value=dry_run))
        options = SimpleNamespace(out=str(path), seconds=100)
        monkeypatch.setattr(against_torch.flags, "FLAGS", options)
        against_torch.main([])
        return begun

    fill.path = path
    return fill


def test_rows_are_written_as_they_come_and_what_fails_costs_no_other(fill):
    results = [{"error": "no memory"}, *GOOD, GOOD[0], {"error": "no torch"}]
    with pytest.raises(UserError, match=r"Not in .*table.json: sample, decode_1\.$"):
        fill(["sample", "decode_8", "decode_1"], results)
    assert not results  # the failed row's other side was not begun
    (name, row), *others = json.loads(fill.path.read_text()).items()
    assert name == "decode_8" and row.items() >= ROW.items() and not others
    # Another go begins with what is missing.
    begun = fill(["decode_8", "transformer_step", "sample"], [*GOOD * 3])
    assert begun == ["train_step", "torch_peers"] + ["decode", "torch_peers"] * 2
    assert set(json.loads(fill.path.read_text())) == {"decode_8", "transformer_step", "sample"}


def test_unknown_rows_are_refused_and_a_dry_run_prints_every_command(fill, capsys):
    with pytest.raises(UserError, match="no row 'decode_2'; did you mean 'decode_8'"):
        fill(["sample", "decode_2"], [])
    assert fill([], [], dry_run=True) == [] and not fill.path.exists()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 * len(against_torch.ROWS)
    assert "decode_8 | torch_peers | decode | 8" in lines


@pytest.mark.parametrize("name", against_torch.ROWS)
def test_our_side_of_a_row_is_a_config_of_full_size(name, monkeypatch):
    monkeypatch.chdir(tiny.ROOT)
    (_, ours), _ = against_torch.commands(name)
    config, tokens = train_step.load_config(ours[-1])
    assert config.model.dtype == "bfloat16" and tokens == name.startswith("transformer_step")


def test_a_program_that_is_late_ends_with_all_that_it_started(tmp_path, monkeypatch):
    program = tmp_path / "python"
    program.write_text('#!/bin/sh\necho nothing\n[ "$3" = quick ] || { sleep 60 & wait; }\n')
    program.chmod(0o755)
    monkeypatch.setattr(apart.sys, "executable", str(program))
    begin = time.monotonic()
    assert apart.run("any", ["slow"], 0.2) == {"error": "not done after 0 s"}
    assert time.monotonic() - begin < 30
    assert "its last line is no result: 'nothing" in apart.run("any", ["quick"], 20)["error"]
