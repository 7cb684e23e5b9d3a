"""A workdir is one training's at a time."""

import json
import os
import socket
import time

import pytest

from fsq_jax.runtime import workdir_lock
from tests import programs


def hold(workdir):
    lock = workdir_lock.WorkdirLock(workdir)
    print("held", flush=True)
    time.sleep(60)
    lock.close()


@pytest.fixture
def no_flock(monkeypatch):
    """A filesystem without locks."""

    def refuse(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(workdir_lock.fcntl, "flock", refuse)


def test_a_second_training_is_refused_while_the_first_lives(tmp_path):
    workdir = str(tmp_path / "run")
    process = programs.Program(hold, workdir)
    while process.said()[0] != "held\n":
        assert process.returncode is None, process.said()[1]
        time.sleep(0.05)
    with pytest.raises(ValueError) as error:
        workdir_lock.WorkdirLock(workdir)
    assert str(error.value) == (
        f"{workdir!r} is being trained in by process {process.pid} on {socket.gethostname()}; wait "
        "for it, end it, or give another --workdir."
    )
    process.kill()
    process.communicate()
    assert os.path.exists(os.path.join(workdir, "lock"))  # of the dead process
    lock = workdir_lock.WorkdirLock(workdir)
    with pytest.raises(ValueError, match=f"by process {os.getpid()} on"):
        workdir_lock.WorkdirLock(workdir)
    lock.close()
    lock.close()
    workdir_lock.WorkdirLock(workdir).close()
    assert os.listdir(workdir) == []


def test_a_folder_made_for_the_lock_goes_with_it(tmp_path):
    workdir_lock.WorkdirLock(str(tmp_path / "run")).close()
    assert not (tmp_path / "run").exists()


def test_without_locks_a_process_of_this_host_counts_while_it_runs(tmp_path, no_flock):
    lock = workdir_lock.WorkdirLock(str(tmp_path))
    with pytest.raises(ValueError, match="is being trained in by process"):
        workdir_lock.WorkdirLock(str(tmp_path))
    lock.close()
    again = {"host": socket.gethostname(), "pid": os.getpid(), "began": "another time"}
    (tmp_path / "lock").write_text(json.dumps(again))  # its number was given to us
    workdir_lock.WorkdirLock(str(tmp_path)).close()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"host": "there"}'])
def test_a_lock_that_says_nothing_is_taken(tmp_path, text):
    (tmp_path / "lock").write_text(text)
    workdir_lock.WorkdirLock(str(tmp_path)).close()


def test_another_hosts_lock_holds_while_it_is_refreshed(tmp_path, monkeypatch):
    monkeypatch.setattr(workdir_lock, "REFRESH_SECONDS", 0.1)
    monkeypatch.setattr(workdir_lock, "WATCH_SECONDS", 0.3)
    path = tmp_path / "lock"
    path.write_text(json.dumps({"host": "elsewhere", "pid": 7}))
    lock = workdir_lock.WorkdirLock(str(tmp_path))  # stands still
    lock.close()
    path.write_text(json.dumps({"host": "elsewhere", "pid": 7}))
    sleep = time.sleep

    def sleep_while_it_works(seconds):
        sleep(seconds)
        os.utime(path)

    monkeypatch.setattr(workdir_lock.time, "sleep", sleep_while_it_works)
    with pytest.raises(ValueError, match="by process 7 on elsewhere"):
        workdir_lock.WorkdirLock(str(tmp_path))
