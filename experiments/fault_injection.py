"""A training in processes of its own, and what a cluster does to it: signals, disks, clocks."""

import contextlib
import os
import pathlib
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
import traceback

import jax

from configs import maskgit_tokenizer
from fsq_jax import train
from fsq_jax.runtime import cli, sharding
from fsq_jax.runtime.user_error import UserError


def tiny_config(batch_size: int = 12):
    """A tokenizer that trains in seconds and saves every fourth step; 12 images fit 1 to 4
    devices."""
    config = maskgit_tokenizer.get_config("scale=smoke,size=8,levels=4-3")
    config.update(
        steps=20,
        batch_size=batch_size,
        eval_batch_size=5,
        log_every=1,
        preview_every=20,
        checkpoint_every=4,
        keep=2,
        best="codebook/perplexity",
    )
    config.model.update(filters=8, channel_multipliers=(1, 1), num_res_blocks=0)
    config.loss.adversarial = 0.0
    config.data.update(train_split="train[:24]", eval_split="validation[:12]")
    config.evals = dict(codebook=dict(every=10))
    return config


class Run:
    """One start of the training, in one or several forked processes.

    Args:
      workdir: of the training.
      log: file that gets what it says.
      processes, devices: of the run, and of each process.
      batch_size: of the training.
      file_limit: bytes that a file may have; 0 for no limit.
      clock: whether the wall clock jumps.
    """

    def __init__(
        self, workdir, log, processes=1, devices=1, batch_size=12, file_limit=0, clock=False
    ):
        self.log = log
        pathlib.Path(log).write_text("")
        with socket.socket() as free:
            free.bind(("localhost", 0))
            address = f"localhost:{free.getsockname()[1]}"
        self.pids = []
        for number in range(processes):
            if not (pid := os.fork()):
                environment = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
                if processes > 1:
                    environment |= {
                        "JAX_COORDINATOR_ADDRESS": address,
                        "JAX_PROCESS_ID": str(number),
                        "JAX_NUM_PROCESSES": str(processes),
                    }
                os.environ.update(environment)
                _be_a_process(workdir, log, batch_size, file_limit, clock)
            self.pids.append(pid)
        self.statuses = {}  # pid -> exit status, negative for a signal

    def signal(self, pid: int, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)

    def wait(self, seconds: float) -> bool:
        """Waits that long at most; whether all processes have ended."""
        until = time.monotonic() + seconds
        while True:
            for pid in set(self.pids) - set(self.statuses):
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    self.statuses[pid] = os.waitstatus_to_exitcode(status)
            if len(self.statuses) == len(self.pids):
                return True
            if time.monotonic() >= until:
                return False
            time.sleep(0.02)


def _be_a_process(workdir: str, log: str, batch_size: int, file_limit: int, clock: bool) -> None:
    """What a forked child does, as `fsq_jax.train` would; never returns."""
    status = 0
    try:
        out = os.open(log, os.O_WRONLY | os.O_APPEND)
        os.dup2(out, 1), os.dup2(out, 2)
        if file_limit:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
        if clock:
            _let_the_clock_jump()
        cli.quiet_threads()
        sharding.initialize_distributed()
        train.train(tiny_config(batch_size), workdir)
        if jax.process_count() > 1:
            jax.distributed.shutdown()
    except (UserError, OSError) as error:
        print(f"Error: {cli.sentence(error)}", file=sys.stderr)
        status = 1
    except BaseException:
        traceback.print_exc()
        status = 2
    sys.stdout.flush(), sys.stderr.flush()
    os._exit(status)


def _let_the_clock_jump() -> None:
    """The wall clock of this process jumps by up to a week, back and forth."""
    real, chance, offset = time.time, random.Random(0), [0.0]

    def jumping():
        if chance.random() < 0.1:
            offset[0] = chance.uniform(-6e5, 6e5)
        return real() + offset[0]

    time.time, time.time_ns = jumping, lambda: int(jumping() * 1e9)


class Disk:
    """A small filesystem of our own, where we may make one; otherwise a folder."""

    def __init__(self, folder: str, megabytes: int = 64):
        self.folder = folder
        os.makedirs(folder, exist_ok=True)
        options = ["-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", folder]
        self.own = not subprocess.run(["mount", *options], capture_output=True).returncode

    def fill(self) -> None:
        with contextlib.suppress(OSError), open(os.path.join(self.folder, "filler"), "wb") as file:
            while True:
                file.write(bytes(1 << 16))
                file.flush()

    def make_room(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.remove(os.path.join(self.folder, "filler"))

    def read_only(self, on: bool) -> bool:
        mode = "remount,ro" if on else "remount,rw"
        return (
            self.own
            and not subprocess.run(
                ["mount", "-o", mode, self.folder], capture_output=True
            ).returncode
        )

    def close(self) -> None:
        if self.own:
            subprocess.run(["umount", "-l", self.folder], capture_output=True)
        shutil.rmtree(self.folder, ignore_errors=True)


def disturb(fault: str, run: Run, after: float, stop_seconds: float, disk: Disk) -> float:
    """Does it `after` seconds and waits until all processes have ended; returns how long the last
    one took after the fault. SIGSTOP and a full disk may let the run go on to its end."""
    if run.wait(after):
        return 0.0
    victim = random.choice(run.pids)
    if fault == "SIGSTOP":
        run.signal(victim, signal.SIGSTOP)
        time.sleep(stop_seconds)
        run.signal(victim, signal.SIGCONT)
        run.wait(after)
        run.signal(victim, signal.SIGKILL)
    elif fault == "full disk":
        disk.fill()
    else:
        run.signal(victim, signal.SIGTERM if fault == "SIGTERM" else signal.SIGKILL)
    begin = time.monotonic()
    if not run.wait(240):
        for pid in run.pids:
            run.signal(pid, signal.SIGKILL)
        run.wait(10)
        return float("inf")
    return time.monotonic() - begin
