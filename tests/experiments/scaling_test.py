"""Rows of scaling: which run together, on which GPUs; what their lines are held against."""

import dataclasses
import json
import os
import sys
import types

import jax
import pytest

from experiments.benchmarks import (
    apart,
    collectives,
    preempted,
    sample_and_score,
    scaling,
    scaling_rows,
    scaling_table,
    train_step,
)
from fsq_jax.evaluators import generation
from fsq_jax.runtime.user_error import UserError
from tests import tiny


@pytest.fixture(autouse=True)
def here(monkeypatch):
    monkeypatch.chdir(tiny.ROOT)


def waves(num_gpus, at_once=5):
    waiting, found = scaling_rows.rows(num_gpus), []
    while waiting:
        found.append(scaling.next_wave(waiting, num_gpus, 70.0, at_once))
        assert found[-1]
        waiting = [row for row in waiting if row not in [p.row for p in found[-1]]]
    return found


@pytest.mark.parametrize("num_gpus", [1, 2, 8])
def test_every_row_runs_once_after_the_one_whose_kernels_it_takes(num_gpus):
    begun = []
    for wave in waves(num_gpus):
        assert all(not p.row.after or p.row.after in begun for p in wave)
        begun += [p.row.name for p in wave]
    assert sorted(begun) == sorted(row.name for row in scaling_rows.rows(num_gpus))
    assert len(begun) == len(set(begun))


def test_rows_that_choose_kernels_share_no_gpu_and_those_that_wait_leave_room():
    for wave in waves(2):
        choosing = [device for p in wave if p.row.chooses for device in p.devices]
        assert len(choosing) == len(set(choosing))
        held = sum(p.row.held_gib for p in wave)
        assert all(held - p.row.held_gib + p.row.gib <= 70 for p in wave)
        assert all(len(p.devices) == p.row.gpus for p in wave)
    first, second = ([p.row.name for p in wave] for wave in waves(2)[:2])
    assert first == ["uvim_lm/1", "tokenizer/1", "links/2"]
    assert second[:2] == ["uvim_lm/fsdp/weak/2", "tokenizer/data/weak/2"]


def test_a_row_for_which_too_little_time_is_left_is_not_begun():
    waiting = [scaling_rows.step("uvim_lm", 2), scaling_rows.step("tokenizer", 2)]
    waiting = [dataclasses.replace(row, after="") for row in waiting]

    def begun(seconds):
        return [p.row.stage for p in scaling.next_wave(waiting, 2, 70.0, seconds=seconds)]

    slow, quick = (row.least for row in waiting)
    assert quick < slow
    assert begun(slow + 2 * scaling.TURN) == ["uvim_lm", "tokenizer"]
    assert begun(slow + scaling.TURN) == ["uvim_lm"]
    assert begun(slow + scaling.TURN - 1) == ["tokenizer"]
    assert begun(quick + scaling.TURN - 1) == []


def test_a_row_that_is_alone_may_compile_until_its_turn(monkeypatch):
    ended = []

    class Slow:
        ready = False

        def __init__(self, *_, **__):
            pass

        def result(self, timeout):
            ended.append(now[0])
            return {"error": "not done"}

        def close(self):
            pass

    now = [0.0]
    clock = types.SimpleNamespace(
        monotonic=lambda: now[0], sleep=lambda _: now.__setitem__(0, now[0] + 1)
    )
    monkeypatch.setattr(scaling, "time", clock)
    monkeypatch.setattr(scaling.apart, "Started", Slow)
    row = dataclasses.replace(scaling_rows.step("tokenizer", 2), seconds=100.0)
    for rows in ([row], [row, row]):
        now[0] = 0.0
        list(scaling.run_wave([scaling.Placed(r, (0, 1)) for r in rows], [], "c", 500.0))
    assert ended == [500 - scaling.TURN, 100, 100]


def test_those_on_other_gpus_are_timed_together():
    one, two = scaling_rows.step("tokenizer", 1), scaling_rows.step("tokenizer", 2)
    wave = [scaling.Placed(one, (0,)), scaling.Placed(two, (0, 1)), scaling.Placed(one, (1,))]
    assert scaling.turns(wave) == [[0, 2], [1]]


def test_a_process_for_each_gpu_sees_its_own():
    row = scaling_rows.step("tokenizer", 2, processes=2, flag="latency_hiding")
    first, second = scaling.environments(scaling.Placed(row, (2, 3)), ["4", "5", "6", "7"], "c")
    assert [first["CUDA_VISIBLE_DEVICES"], second["CUDA_VISIBLE_DEVICES"]] == ["6", "7"]
    assert "latency_hiding_scheduler=true" in first["XLA_FLAGS"]
    assert first["JAX_COORDINATOR_ADDRESS"] == second["JAX_COORDINATOR_ADDRESS"]
    assert [first["JAX_PROCESS_ID"], second["JAX_PROCESS_ID"]] == ["0", "1"]
    row = scaling_rows.step("tokenizer", 2)
    (both,) = scaling.environments(scaling.Placed(row, (2, 3)), ["4", "5", "6", "7"], "c")
    assert both["CUDA_VISIBLE_DEVICES"] == "6,7" and "JAX_PROCESS_ID" not in both


def variant(row):
    return train_step.load_config(row.arguments[-1])[0]


def test_the_batch_grows_or_is_held_in_parts_of_one_size():
    for stage in scaling_rows.KINDS:
        one = variant(scaling_rows.step(stage, 1))
        for gpus in (2, 8):
            grown = variant(scaling_rows.step(stage, gpus, "fsdp", "weak"))
            assert grown.batch_size == gpus * one.batch_size and grown.fsdp
            assert grown.accumulate == one.accumulate
            held = scaling_rows.step(stage, gpus, "data", "strong")
            assert variant(held).batch_size == one.batch_size and not variant(held).fsdp
            parts = variant(held).accumulate
            assert held.chooses == (gpus * parts != one.accumulate)


LINES = [
    dict(row="t/1", stage="t", parallel="", scaling="", gpus=1, processes=1, flags="",
         images_per_second=100.0, peak_gib=10.0, batch_size=8, losses=[2.0, 1.0], device="H100"),
    dict(row="t/data/weak/2", stage="t", parallel="data", scaling="weak", gpus=2, processes=1,
         flags="", images_per_second=190.0, peak_gib=10.0, batch_size=16, losses=[3.0, 1.0],
         device="H100"),
    dict(row="t/data/strong/2", stage="t", parallel="data", scaling="strong", gpus=2, processes=1,
         flags="", images_per_second=150.0, peak_gib=6.0, batch_size=8, losses=[2.0, 1.01],
         device="H100"),
]  # fmt: skip


def test_lines_are_held_against_one_gpu():
    error = LINES[1] | {"row": "t/fsdp/weak/2", "parallel": "fsdp", "error": "out of memory"}
    for name in ("images_per_second", "losses", "device"):
        del error[name]
    text = scaling_table.table([*LINES, error])
    cells = [[c.strip() for c in line.split("|")[1:-1]] for line in text.splitlines()[2:]]
    table = [dict(zip(cells[0], row, strict=True)) for row in cells[2:]]
    assert [row["times one GPU"] for row in table] == ["1.00", "1.90", "1.50", ""]
    assert [row["efficiency"] for row in table] == ["100.0%", "95.0%", "75.0%", ""]
    # Of the same batch alone.
    assert [row["losses differ by"] for row in table] == ["", "", "1.0e-02 (1 GPUs)", ""]
    assert table[3]["images/s"] == "error: out of memory"
    ending = scaling_table.table([*LINES, error], ["t/1", "t/2", "u/2"]).removeprefix(text)
    assert ending.split() == ["Not", "begun:", "`t/2`,", "`u/2`."]


PROGRAM = """
import json, sys
from experiments.benchmarks import apart
apart.wait_for_turn()
print(json.dumps({"argument": sys.argv[1]}))
"""


def test_a_measurement_waits_for_its_turn_and_may_have_processes(tmp_path, monkeypatch):
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\nexec {sys.executable} -c '{PROGRAM}' $3 $PROCESS\n")
    program.chmod(0o755)
    monkeypatch.setattr(apart.sys, "executable", str(program))
    both = [{"PYTHONPATH": str(tiny.ROOT), "PROCESS": str(i)} for i in range(2)]
    started = apart.Started("any", ["hello"], both, waits=True)
    while not started.ready:
        assert all(p.poll() is None for p in started.processes)
    started.go()
    assert started.result(60) == {"argument": "hello"}
    started = apart.Started("any", ["hello"], both[:1], waits=True)
    assert "not done after" in started.result(0.5)["error"]


def test_rows_are_measured_on_simulated_devices_and_not_twice(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    options = dict(out=str(tmp_path), seconds=600, rows=["transformer/fsdp/weak/2"], gpus=2, gib=70)
    options |= dict(scale="smoke", images=16, list=False, at_once=4)
    options["cache"] = os.environ["JAX_COMPILATION_CACHE_DIR"]
    monkeypatch.setattr(scaling.flags, "FLAGS", types.SimpleNamespace(**options))
    for _ in range(2):
        scaling.main([])
    (line,) = map(json.loads, (tmp_path / "scaling.jsonl").read_text().splitlines())
    assert line["images_per_second"] > 0 and len(line["losses"]) == 3
    assert line["collectives"]["all-reduce"]["bytes"] > 1000
    options |= dict(rows=["uvim_base/1", "transformer/fsdp/*"], seconds=1)
    monkeypatch.setattr(scaling.flags, "FLAGS", types.SimpleNamespace(**options))
    scaling.main([])
    assert len((tmp_path / "scaling.jsonl").read_text().splitlines()) == 1
    text = (tmp_path / "scaling.md").read_text()
    assert "| transformer | 2 | cut |" in text and "Not begun: `uvim_base/1`, " in text


def test_rows_are_chosen_by_patterns_in_their_order():
    rows = scaling_rows.rows(2)
    names = [row.name for row in scaling.chosen(rows, ["uvim_*/1", "tokenizer/1"])]
    assert names == ["uvim_lm/1", "uvim_base/1", "tokenizer/1"]
    with pytest.raises(UserError, match="No row fits 'token'"):
        scaling.chosen(rows, ["token"])


def test_each_device_draws_its_own_samples_and_sends_nothing():
    model = "model.depth=1 model.width=16 model.mlp_dim=16 model.num_heads=2"
    predictor = sample_and_score.random_predictor(
        f"configs/maskgit_transformer.py:scale=smoke,size=16 {model} eval_batch_size=16 "
        "sampling.guidance=0.5 sampling.num_steps=2"
    )
    (batch,) = generation.balanced_labels(16, 30, 16, predictor.own_rows)
    arguments = predictor.state, predictor.put(batch), jax.random.key(0)
    sample = predictor.predict["sample"].lower(*arguments).compile()
    assert collectives.of_program(sample.as_text(), 8) == {}
    assert {x.sharding.spec[0] for x in jax.tree.leaves(sample(*arguments))} == {"data"}


PROGRAM_OF_TWO = """HloModule step

%body (p: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %ag = ((bf16[2,8]{1,0}, f32[2]{0}), (bf16[4,8]{1,0}, f32[4]{0})) all-gather-start(%a, %b), dims
  %done = (bf16[4,8]{1,0}, f32[4]{0}) all-gather-done(%ag)
  %a2a = ((f32[2,3]{1,0}), f32[2,3]{1,0}) all-to-all-start(%c), dimensions={0}
}

%branch.1 (q: f32[]) -> f32[] {
  %rs = f32[8]{0} reduce-scatter(%q), dimensions={0}, to_apply=%add
}

ENTRY %main (x: f32[4,8]) -> f32[4,8] {
  %ar = f32[16]{0} all-reduce-start(%x), to_apply=%add
  %ars = (f32[2]{0}, f32[3]{0}) all-reduce-start(%x, %y), to_apply=%add
  %newer = ((f32[4]{0}), f32[4]{0}) all-reduce-start(%x), to_apply=%add, output_to_operand_aliasing={{1}: (0, {})}
  %loop = (s32[], f32[4,8]{1,0}) while(%t), condition=%c, body=%body, backend_config={"known_trip_count":{"n":"3"}}
  %cond = f32[] conditional(%i, %q, %q), branch_computations={%branch.1, %branch.1}
}
"""  # noqa: E501


def test_collectives_of_a_program_are_counted_as_often_as_they_run():
    assert collectives.of_program(PROGRAM_OF_TWO, 2) == {
        "all-gather": {"count": 3, "bytes": 3 * (4 * 8 * 2 + 4 * 4)},
        "all-reduce": {"count": 3, "bytes": 64 + 20 + 16},
        "all-to-all": {"count": 3, "bytes": 3 * 24},
        "reduce-scatter": {"count": 2, "bytes": 2 * 8 * 4 * 2},
    }


def test_losses_of_two_runs_are_compared_before_and_after_the_stop():
    one = {step: 2.0 for step in range(1, 13)}
    other = one | {8: 2.02, 12: 2.2}
    found = preempted.compare(one, other, stopped=7)
    assert found["difference_before"] == 0
    assert found["difference_at_once"] == pytest.approx(0.01)
    assert found["difference_after"] == pytest.approx(0.1)
    assert found["last_losses"] == pytest.approx([2.0, 2.1])
    assert "error" in preempted.compare(one, {1: 2.0}, stopped=1)
