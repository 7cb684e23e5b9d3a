"""A run of several processes that loses one: each survivor says which, and ends."""

import socket
import time

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import multihost_utils

from fsq_jax.runtime import liveness
from tests import programs


def work(address, number, workdir):
    """What one process of three does, until another is lost."""
    liveness.BEAT_SECONDS, liveness.LOST_SECONDS = 0.5, 4.0
    jax.distributed.initialize(address, 3, number, heartbeat_timeout_seconds=30)
    watch = liveness.Watch(workdir, lambda: "The last checkpoint is of step 3.")
    try:
        for i in range(10_000):
            multihost_utils.process_allgather(jnp.ones(3))
            time.sleep(0.1)
            if i == 3:
                print("at work", flush=True)
    except Exception as error:
        watch.wait_for_verdict(error)
        raise


@pytest.mark.parametrize("victim", [1, 0])
def test_survivors_name_the_process_that_is_lost(tmp_path, victim):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    processes = [programs.Program(work, address, number, str(tmp_path)) for number in range(3)]
    try:
        for process in processes:
            while "at work" not in process.said()[0]:
                assert process.returncode is None, process.said()[1]
                time.sleep(0.05)
        processes[victim].kill()
        begin = time.monotonic()
        for number in {0, 1, 2} - {victim}:
            _, said = processes[number].communicate(timeout=60)
            assert processes[number].returncode == liveness.LOST_STATUS, said
            assert said.strip().splitlines()[-1] == (
                f"Error: Process {victim} of 3 is lost. The last checkpoint is of step 3."
            )
        assert time.monotonic() - begin < 30
    finally:
        for process in processes:
            process.kill()


def test_one_process_watches_nothing(tmp_path):
    watch = liveness.Watch(str(tmp_path), lambda: "")
    watch.wait_for_verdict(RuntimeError("at once"))
    watch.close()
    assert not list(tmp_path.iterdir())
