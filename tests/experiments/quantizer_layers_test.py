"""The comparison of quantizer layers: rows with what failed in place of numbers, and memory."""

import json
from types import SimpleNamespace

import jax
import pytest

from experiments.benchmarks import apart, codebook_memory, quantizer_layers
from fsq_jax import quantizers
from fsq_jax.runtime.user_error import UserError

OURS = {"ours": 2.0, "ours_mib": 10.0}
TORCH = {"torch": 5.0, "torch_mib": 30.0, "torch_compiled": "out of memory"}


@pytest.fixture
def options(tmp_path):
    given = dict(names=["vq", "simvq"], bits=["10", "14"], tokens=512, channels=8)
    return SimpleNamespace(
        **given, out=str(tmp_path / "table.json"), seconds=100, one="", side="ours", limit=60.0
    )


def test_rows_have_what_failed_in_place_of_numbers(options, monkeypatch):
    sides = [
        {"sizes": {"10": OURS, "14": OURS}, "device": "H100"},
        {"sizes": {"10": TORCH, "14": {"error": "out of memory"}}, "device": ""},
        {"error": "no such module"},
    ]
    begun = []

    def program(module, arguments, timeout):
        assert module == "quantizer_layers" and 0 < timeout <= 100
        begun.append([arguments[0], arguments[1]])
        return sides.pop(0)

    monkeypatch.setattr(apart, "run", program)
    monkeypatch.setattr(quantizer_layers.flags, "FLAGS", options)
    with pytest.raises(UserError, match=r"Not in .*table.json: simvq_10, simvq_14\.$"):
        quantizer_layers.main([])
    with open(options.out) as file:
        table = json.load(file)
    assert begun == [["--one=vq", "--side=ours"], ["--one=vq", "--side=torch"]] + [
        ["--one=simvq", "--side=ours"]
    ]
    row = table["vq_10"]
    assert row.items() >= (OURS | TORCH | {"ratio": 2.5, "device": "H100"}).items()
    assert table["vq_14"]["torch"] == "out of memory" and "ratio" not in table["vq_14"]
    # Another go begins with what is missing.
    sides += [{"error": "again"}] * 2
    with pytest.raises(UserError, match="simvq_10"):
        quantizer_layers.main([])
    assert begun[3] == ["--one=simvq", "--side=ours"]
    options.names = ["vqq"]
    with pytest.raises(UserError, match="no quantizer 'vqq'; did you mean 'vq'"):
        quantizer_layers.main([])


def test_our_side_is_a_step_of_training(options, monkeypatch, capsys):
    options.one, options.bits = "vq_reseed", ["4"]
    monkeypatch.setattr(quantizer_layers.flags, "FLAGS", options)
    monkeypatch.setattr(quantizer_layers, "time_calls", lambda call, wait: (call(), wait(), 1.5)[2])
    quantizer_layers.main([])
    found = json.loads(capsys.readouterr().out)
    assert found["sizes"]["4"]["ours"] == 1.5 and found["sizes"]["4"]["ours_mib"] > 0
    assert quantizer_layers.attempt(lambda: 1 / 0) == {"error": "division by zero"}
    for name in set(quantizer_layers.OURS) & set(quantizers.QUANTIZERS):
        for bits in (10, 14, 16, 18):
            size = quantizer_layers.make(name, bits, channels=8).codebook_size
            assert 2 ** (bits - 0.1) < size <= 2**bits, name


def test_blocks_take_less_memory():
    cpu = jax.devices("cpu")[0]
    found = codebook_memory.measure("simvq", 4, "step", cpu, sizes=(2**13, 2**15))
    assert found["arguments_mib"] < found["in_blocks_mib"] < 600 < 1024 < found["whole_mib"]
