"""A run that is killed and started again is, in what it writes, the run that never was."""

import signal

import pytest

from fsq_jax.runtime import checkpoint
from fsq_jax.runtime.workdir import load_results
from tests import tiny

# The program itself, but for a signal that it sends itself once a step's metrics are written.
PROGRAM = """
import os, sys
from absl import flags
from ml_collections import config_flags
from fsq_jax import train
from fsq_jax.runtime import cli, metric_writer

number, step = (int(sys.argv.pop(1)) for _ in range(2))
scalars = metric_writer.MetricWriter.scalars

def scalars_then_signal(self, at, split, values):
    scalars(self, at, split, values)
    if at == step:
        os.kill(os.getpid(), number)

metric_writer.MetricWriter.scalars = scalars_then_signal
config_flags.DEFINE_config_file("config")
flags.DEFINE_string("workdir", None, "")
flags.DEFINE_string("profile", "", "")
cli.run(train.main)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("resume")


@pytest.fixture(scope="module")
def undisturbed(folder):
    """(config, workdir) of a tokenizer that nobody interrupted."""
    config, workdir = tiny.tokenizer(), folder / "undisturbed"
    status, error = train(config, folder, workdir)
    assert status == 0, error
    return config, workdir


def train(config, folder, workdir, number=0, step=0):
    """(exit status, stderr) of one run, which gets signal `number` at `step`."""
    process = tiny.start(["-c", PROGRAM, str(number), str(step)], config, folder, workdir)
    _, error = process.communicate(timeout=300)
    return process.returncode, error


def steps(workdir):
    return [line["step"] for line in tiny.lines(workdir)]


def test_killed_three_times_and_terminated_once(undisturbed, folder, tmp_path):
    config, reference = undisturbed

    # Before there is a checkpoint; then while the one of step 6 is being written.
    for step in (2, 7):
        assert train(config, folder, tmp_path, signal.SIGKILL, step)[0] == -signal.SIGKILL
        assert steps(tmp_path)[-1] == step

    # SIGTERM is noticed after the step at work, which is the one after the last line.
    status, error = train(config, folder, tmp_path, signal.SIGTERM, 7)
    assert status == 0, error
    assert "SIGTERM: saving a checkpoint" in error and "Stopped at step 8" in error
    assert steps(tmp_path)[-1] == 8
    assert checkpoint.load_weights(tmp_path)[0] == 8
    assert not load_results(tmp_path)

    status, error = train(config, folder, tmp_path, signal.SIGKILL, 10)
    assert status == -signal.SIGKILL and "Going on from step 8" in error
    status, error = train(config, folder, tmp_path)
    assert status == 0 and "Going on from step" in error  # 9, or 8 where 9 was not yet whole
    assert_same_run(tmp_path, reference)


def test_killed_transformer(undisturbed, folder, tmp_path):
    _, tokenizer = undisturbed
    config = tiny.transformer(tokenizer)
    reference = tmp_path / "undisturbed"
    status, error = train(config, folder, reference)
    assert status == 0, error
    killed = tmp_path / "killed"
    assert train(config, folder, killed, signal.SIGKILL, 8)[0] == -signal.SIGKILL
    assert train(config, folder, killed)[0] == 0
    assert_same_run(killed, reference)


def assert_same_run(workdir, reference):
    """To the last bit: metrics, results, averaged weights."""
    assert tiny.lines(workdir) == tiny.lines(reference)
    assert steps(workdir) == [*range(1, 13), 12]  # the last line is the evaluation's
    assert load_results(workdir) == load_results(reference)
    prints = [checkpoint.fingerprint(checkpoint.load_weights(w)[1]) for w in (workdir, reference)]
    assert prints[0] == prints[1]
