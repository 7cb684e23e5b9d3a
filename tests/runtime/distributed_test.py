"""Two processes of jax.distributed on one machine: the program as it runs on two hosts."""

import functools
import re
import signal
import socket
import time

import numpy as np
import pytest

from fsq_jax import train
from fsq_jax.runtime import checkpoint, sharding
from fsq_jax.runtime.workdir import save_config
from tests import programs, tiny


def start(config, folder, workdir):
    """The two processes of one run, a simulated device each."""
    save_config(folder, config)
    file = folder / "config.py"
    file.write_text(
        "from fsq_jax.runtime.workdir import load_config\n\n\n"
        f"def get_config():\n    return load_config({str(folder)!r})\n"
    )
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    return [
        programs.start(
            "fsq_jax.train",
            f"--config={file}",
            f"--workdir={workdir}",
            JAX_COORDINATOR_ADDRESS=f"localhost:{port}",
            JAX_NUM_PROCESSES="2",
            JAX_PROCESS_ID=str(i),
            **tiny.ONE_DEVICE,
        )
        for i in range(2)
    ]


def finish(processes):
    """[(stdout, stderr)]; all must have ended well."""
    try:
        outputs = [process.communicate(timeout=240) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (_, error) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, error[-2000:]
    return outputs


@pytest.fixture(scope="module")
def config():
    return tiny.tokenizer(
        {
            "steps": 60,
            "checkpoint_every": 20,
            "preview_every": 60,
            "evals.codebook.every": 30,
            "loss.adversarial": 0.0,
            "fsdp": True,
            "data.train_split": "train[:64]",
        }
    )


@pytest.fixture(scope="module")
def run(config, tmp_path_factory):
    """(workdir, outputs until SIGTERM to one process, outputs of the same command again)."""
    folder, workdir = tmp_path_factory.mktemp("two"), tmp_path_factory.mktemp("run") / "workdir"
    processes = start(config, folder, workdir)
    # Nothing is written yet but the config: the step is being compiled.
    while not (workdir / "config.json").exists() and processes[0].returncode is None:
        time.sleep(0.05)
    assert processes[0].returncode is None, processes[0].said()
    processes[1].send_signal(signal.SIGTERM)
    stopped = finish(processes)
    middle = checkpoint.load_weights(str(workdir))[0]
    return workdir, middle, stopped, finish(start(config, folder, workdir))


def test_sigterm_to_one_process_stops_both_at_one_step(run, config):
    _, middle, stopped, _ = run
    assert 0 < middle < config.steps
    assert f"Stopped at step {middle};" in stopped[0][1]
    assert "Stopped" not in stopped[1][1]  # the first process speaks for all


def test_it_goes_on_to_the_end_and_one_process_writes(run, config):
    workdir, middle, _, outputs = run
    assert f"Going on from step {middle}" in outputs[0][1]
    steps = [line["step"] for line in tiny.lines(workdir, "train")]
    assert steps == list(range(1, config.steps + 1))
    assert [line["step"] for line in tiny.lines(workdir, "eval")] == [30, 60]
    assert checkpoint.load_weights(str(workdir))[0] == config.steps
    assert len(list((workdir / "samples").iterdir())) == 1
    printed = [re.findall(r"codebook/usage: ([\d.]+)", out) for out, _ in outputs]
    assert len(printed[0]) == 1


def test_its_metrics_are_those_of_a_single_process(run, config, tmp_path, monkeypatch):
    """The same rows make up each batch, in another order; the losses are means over them."""
    monkeypatch.setattr(sharding, "make_mesh", functools.partial(sharding.make_mesh, 1))
    config = config.copy_and_resolve_references()
    config.steps = 6
    train.train(config, str(tmp_path))
    ours, theirs = tiny.lines(run[0], "train")[:6], tiny.lines(tmp_path, "train")
    for step, (two, one) in enumerate(zip(ours, theirs, strict=True)):
        for name in one:
            tolerance = 1e-4 if step == 0 else 5e-3
            if one[name] != two[name]:
                np.testing.assert_allclose(two[name], one[name], rtol=tolerance, err_msg=name)
