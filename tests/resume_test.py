"""A run that is killed and started again is, in what it writes, the run that never was."""

import os
import signal

import pytest

from fsq_jax import train as training
from fsq_jax.runtime import checkpoint
from fsq_jax.runtime.metric_writer import MetricWriter
from fsq_jax.runtime.workdir import load_results
from tests import programs, tiny


def program(config, workdir, number, step):
    """Trains, and sends itself signal `number` once the metrics of `step` are written."""
    scalars = MetricWriter.scalars

    def scalars_then_signal(self, at, split, values):
        scalars(self, at, split, values)
        if at == step:
            os.kill(os.getpid(), number)

    MetricWriter.scalars = scalars_then_signal
    training.run_page.write = lambda workdir: None  # to draw a page takes longer than all steps
    training.train(config, str(workdir))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """(config, workdir) of a tokenizer that nobody interrupted."""
    # R1 keeps nothing from step to step, and takes a third of the time to trace.
    config, workdir = tiny.tokenizer({"loss.r1": 0.0}), tmp_path_factory.mktemp("undisturbed")
    status, error = train(config, workdir)
    assert status == 0, error
    return config, workdir


def train(config, workdir, number=0, step=0):
    """(exit status, stderr) of one run, which gets signal `number` at `step`."""
    process = programs.Program(program, config, workdir, number, step, **tiny.ONE_DEVICE)
    _, error = process.communicate(timeout=300)
    return process.returncode, error


def steps(workdir):
    return [line["step"] for line in tiny.lines(workdir)]


def test_killed_three_times_and_terminated_once(undisturbed, tmp_path):
    config, reference = undisturbed

    # Before there is a checkpoint; then while the one of step 6 is being written.
    for step in (2, 7):
        assert train(config, tmp_path, signal.SIGKILL, step)[0] == -signal.SIGKILL
        assert steps(tmp_path)[-1] == step

    # SIGTERM is noticed after the step at work, which is the one after the last line.
    status, error = train(config, tmp_path, signal.SIGTERM, 7)
    assert status == 0, error
    assert "SIGTERM: saving a checkpoint" in error and "Stopped at step 8" in error
    assert steps(tmp_path)[-1] == 8
    assert checkpoint.load_weights(tmp_path)[0] == 8
    assert not load_results(tmp_path)

    status, error = train(config, tmp_path, signal.SIGKILL, 10)
    assert status == -signal.SIGKILL and "Going on from step 8" in error
    status, error = train(config, tmp_path)
    assert status == 0 and "Going on from step" in error  # 9, or 8 where 9 was not yet whole
    assert_same_run(tmp_path, reference)


def test_killed_transformer(undisturbed, tmp_path):
    _, tokenizer = undisturbed
    config = tiny.transformer(tokenizer)
    reference = tmp_path / "undisturbed"
    status, error = train(config, reference)
    assert status == 0, error
    killed = tmp_path / "killed"
    assert train(config, killed, signal.SIGKILL, 8)[0] == -signal.SIGKILL
    assert train(config, killed)[0] == 0
    assert_same_run(killed, reference)


def assert_same_run(workdir, reference):
    """To the last bit: metrics, results, averaged weights."""
    assert tiny.lines(workdir) == tiny.lines(reference)
    assert steps(workdir) == [*range(1, 13), 12]  # the last line is the evaluation's
    assert load_results(workdir) == load_results(reference)
    prints = [checkpoint.fingerprint(checkpoint.load_weights(w)[1]) for w in (workdir, reference)]
    assert prints[0] == prints[1]
