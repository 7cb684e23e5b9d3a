"""Processes are spread over the GPUs that are there."""

from experiments import gpus


def test_processes_are_dealt_out_and_share_memory(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    given = [gpus.environment(i, 4) for i in range(4)]
    assert [g["CUDA_VISIBLE_DEVICES"] for g in given] == ["3", "5", "3", "5"]
    assert {g["XLA_PYTHON_CLIENT_MEM_FRACTION"] for g in given} == {"0.425"}
    assert gpus.environment(1, 2) == {"CUDA_VISIBLE_DEVICES": "5"}


def test_without_a_gpu_nothing_is_said(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpus.environment(0, 4) == {}
