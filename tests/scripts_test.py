"""The launch scripts: what they would run, with stand-ins for the clients of a cluster."""

import os
import subprocess
import tarfile

import pytest

from tests import tiny

SCRIPTS = tiny.ROOT / "scripts"


@pytest.fixture
def stand_in(tmp_path):
    """A function that makes a program which writes down its arguments and then runs some lines."""

    def make(name, lines=""):
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        noted = f'printf "%s\\n" "{name} $*" >> {tmp_path}/log'
        path.write_text(f"#!/usr/bin/env bash\n{noted}\n{lines}")
        path.chmod(0o755)
        return str(path)

    return make


def run(script, arguments, tmp_path, **environment):
    path = f"{tmp_path}/bin:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", str(SCRIPTS / script), *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"PATH": path} | environment,
    )
    log = tmp_path / "log"
    return done, log.read_text() if log.exists() else ""


def test_a_pod_gets_this_checkout_and_one_command(stand_in, tmp_path):
    if not (tiny.ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    stand_in("gcloud", f'if [[ $4 == scp ]]; then cp "$5" {tmp_path}/sent.tar.gz; fi')
    flags = ["--config=configs/uvim_lm.py:data=folder:/my data", "--workdir=/mnt/run"]
    done, log = run("tpu_pod.sh", ["pod", "zone-a", *flags], tmp_path)
    assert done.returncode == 0, done.stderr
    copy, start = log.split("gcloud compute tpus tpu-vm ")[1:]
    assert copy.startswith("scp ") and "pod:fsq_jax.tar.gz --zone=zone-a --worker=all" in copy
    assert start.startswith("ssh pod --zone=zone-a --worker=all --command=set -e")
    assert "-m fsq_jax.train --config=configs/uvim_lm.py:data=folder:/my\\ data" in start
    with tarfile.open(tmp_path / "sent.tar.gz") as archive:
        assert {"pyproject.toml", "fsq_jax/train.py", "configs/uvim_lm.py"} <= set(
            archive.getnames()
        )


def test_a_pod_needs_a_name_and_a_zone(tmp_path):
    done, _ = run("tpu_pod.sh", ["pod"], tmp_path)
    assert done.returncode == 2 and "usage:" in done.stderr


@pytest.mark.parametrize(
    "status, finished, requeued", [(0, False, True), (0, True, False), (1, False, False)]
)
def test_a_slurm_job_that_was_stopped_goes_back_into_the_queue(
    stand_in, tmp_path, status, finished, requeued
):
    stand_in("srun", f"exit {status}")
    stand_in("scontrol")
    python = stand_in("python-of-the-test", f"exit {int(not finished)}")
    done, log = run(
        "slurm.sbatch", ["--config=x", "--workdir=/shared/run"], tmp_path,
        SLURM_JOB_ID="7", SLURM_JOB_NODELIST="n1", FSQ_JAX_PYTHON=python,
    )  # fmt: skip
    assert done.returncode == status
    assert log.startswith("srun --")
    assert f" {python} -m fsq_jax.train --config=x --workdir=/shared/run\n" in log
    assert ("scontrol requeue 7" in log) == requeued


def test_a_slurm_job_needs_a_workdir(tmp_path):
    done, _ = run("slurm.sbatch", ["--config=x"], tmp_path)
    assert done.returncode == 2 and "--workdir" in done.stderr
