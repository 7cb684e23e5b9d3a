"""The model of collectives: what it gives back, what it may not claim."""

import dataclasses
import itertools

import pytest

from experiments.benchmarks import scaling_model as model
from experiments.benchmarks import scaling_rows
from fsq_jax.runs.costs import PEAK_FLOPS

H100 = model.gpus("NVIDIA H100 80GB HBM3")[0]
SENT = {
    "all-reduce": {"count": 3, "bytes": 2e8},
    "all-gather": {"count": 10, "bytes": 1.5e9},
    "reduce-scatter": {"count": 5, "bytes": 1.5e9},
    "all-to-all": {"count": 1, "bytes": 1e8},
    "collective-permute": {"count": 1, "bytes": 1e6},
}


def line(gpus, step_ms, batch, sent, **facts):
    own = {"parallel": "", "scaling": ""} if gpus == 1 else {"parallel": "data", "scaling": "weak"}
    return (
        dict(stage="s", gpus=gpus, processes=1, flags="", step_ms=step_ms, batch_size=batch)
        | dict(collectives=sent, peak_gib=40.0, device="NVIDIA H100 80GB HBM3")
        | own
        | facts
    )


MEASURED = [line(1, 200.0, 64, {}), line(2, 206.0, 128, SENT)]


def test_one_device_sends_nothing_and_the_bytes_of_a_ring_are_those_of_two():
    assert model.collective_seconds(SENT, 1, H100, 1.0) == 0
    still = dataclasses.replace(H100, hop=(0, 0))
    reduced = {"all-reduce": {"count": 1, "bytes": 450e9}}
    assert model.collective_seconds(reduced, 2, still, 1.0) == pytest.approx(1.0)
    assert model.collective_seconds(reduced, 8, still, 1.0) == pytest.approx(2 * 7 / 8)
    # On 16, each of a host's eight sends its eighth to the other host, and gets one.
    assert model.collective_seconds(reduced, 16, still, 1.0) == pytest.approx(
        2 * (7 / 8 + 450e9 / 8 / 2 / 50e9)
    )
    gathered = {"all-gather": {"count": 1, "bytes": 450e9}}
    assert model.collective_seconds(gathered, 8, still, 0.5) == pytest.approx(2 * 7 / 8)


@pytest.mark.parametrize("kind", SENT)
def test_collectives_take_longer_with_less_bandwidth_more_bytes_and_more_devices(kind):
    def seconds(machine=H100, devices=64, factor=1.0):
        sent = {kind: {"count": 2, "bytes": factor * 1e9}}
        return model.collective_seconds(sent, devices, machine, 0.8)

    assert seconds(dataclasses.replace(H100, slow=25e9)) > seconds()
    assert seconds(factor=2) > seconds()
    over = [seconds(devices=n) for n in (16, 64, 256, 1024)]
    assert all(b >= a for a, b in itertools.pairwise(over))


@pytest.mark.parametrize("together", [0.2, 0.203, 0.206, 0.3])
def test_the_measured_step_comes_out_again(together):
    taken = model.collective_seconds(SENT, 2, H100, 0.8)
    fitted = model.fit(0.2, together, taken)
    assert fitted.step(taken) == pytest.approx(together)
    assert 0 <= fitted.exposed <= 1 and fitted.other >= 0


def test_a_step_that_was_shorter_is_not_taken_for_a_gain():
    assert model.fit(0.2, 0.19, 0.01) == model.Fit(0.2, 0.0, 0.0)


def test_predictions_fall_with_the_devices_and_stay_below_all_of_them():
    found = model.predict(MEASURED)
    for name in {p["machine"] for p in found}:
        own = [p for p in found if p["machine"] == name]
        assert {p["reached"] for p in own} == {model.REACHED}
        efficiencies = [p["efficiency"] for p in own]
        assert all(0 < b <= a <= 1 for a, b in itertools.pairwise(efficiencies))
        assert own[0]["batch_size"] == 64 * own[0]["devices"]
    assert max(p["devices"] for p in found if p["machine"] == "TPU v5e") == 256
    v5p = next(p for p in found if p["machine"] == "TPU v5p" and p["devices"] == 16)
    slower = PEAK_FLOPS[H100.kind] / PEAK_FLOPS["TPU v5p"]
    assert v5p["step_ms"] >= 200 * slower
    assert {p["fits"] for p in found if p["machine"] == "TPU v4"} == {False}  # 40 of 32 GiB


def test_only_plain_weak_rows_of_stages_that_ran_alone_are_read():
    others = [
        line(2, 100.0, 128, SENT, flags="combine_all"),
        line(2, 100.0, 128, SENT, processes=2),
        line(2, 100.0, 64, SENT, scaling="strong"),
        line(2, 100.0, 64, SENT, stage="never_alone"),
        dict(stage="s", gpus=2, scaling="weak", error="out of memory"),
    ]
    found = model.predict([*MEASURED, *others])
    assert {p["stage"] for p in found} == {"s"}
    assert len(found) == len(model.predict(MEASURED))


LINKS = dict(
    stage="links", gpus=2, scaling="", processes=1, flags="", bus_gb_per_second={"all-reduce": 225}
)


def test_slower_links_than_usual_make_a_second_prediction():
    found = model.predict([*MEASURED, LINKS])
    slow, usual = ([p for p in found if p["reached"] == share] for share in (0.5, 0.8))
    assert len(slow) == len(usual) == len(found) / 2
    gpus = [(a, b) for a, b in zip(slow, usual, strict=True) if "H100" in a["machine"]]
    assert all(a["efficiency"] < b["efficiency"] for a, b in gpus)
    assert "–" in model.table(found).splitlines()[2]


def test_what_was_not_measured_on_several_has_its_programs_collectives_all_exposed():
    tokenizer = scaling_rows.KINDS["tokenizer"]
    variants = [
        tokenizer.variant("paper", parallel, batch, 2)
        for parallel, batch in (("data", 128), ("fsdp", 128), ("data", 32))
    ]
    lines = [dict(variant=v, gpus=2, collectives=SENT, peak_gib=20.0) for v in variants]
    compiled = model.compiled_lines([*lines, dict(variant=variants[0], gpus=2, error="none")])
    assert [(x["stage"], x["parallel"]) for x in compiled] == [
        ("tokenizer", "data"),
        ("tokenizer", "fsdp"),
    ]
    own = [dict(x, stage="tokenizer") for x in MEASURED]
    assert model.predict(own[1:], compiled) == []
    measured = model.predict(own)
    found = model.predict(own, compiled)  # data parallel was measured
    assert found[: len(measured)] == measured
    others = found[len(measured) :]
    assert {(p["parallel"], p["from"], p["exposed"]) for p in others} == {
        ("fsdp", "its program", 1.0)
    }
    first = others[0]
    assert first["step_ms"] == pytest.approx(200 + first["collectives_ms"])


def test_the_table_has_a_row_for_each_machine():
    rows = model.table(model.predict(MEASURED)).splitlines()
    assert len(rows) == 2 + 2 + len(model.TPUS)
    assert all("%" in row for row in rows[2:])


def test_the_largest_machine_is_predicted_from_and_held_against_the_smaller_ones():
    larger = line(4, 208.0, 256, SENT)
    assert model.predict([*MEASURED, larger]) == model.predict([MEASURED[0], larger])
    assert model.predict([larger, *MEASURED]) == model.predict([MEASURED[0], larger])
    assert model.held_against(MEASURED) == []
    held = model.held_against([*MEASURED, larger, dict(larger, gpus=8, parallel="fsdp")])
    assert [(x["from"], x["devices"], x["measured_ms"]) for x in held] == [(2, 4, 208.0)]
    assert 206.0 < held[0]["predicted_ms"] < 212.0
