"""Disturbs trainings in all the ways a cluster does, and holds what they leave against a quiet one.

python -m experiments.faults --kills=100 --workdir=runs/faults --stop_seconds=60

A training of seconds is started, disturbed at a random moment, and started again until it is done;
then its metrics.jsonl, results.json and last weights are compared with those of a training that
nobody disturbed. Three scenarios take turns:

  one       one process, one device: everything equal to the last bit
  four      four processes of one run: all equal, and the survivors of a loss say so in 30 s
  devices   started again on 1, 2, 3 or 4 devices: the same lines, their numbers within rounding

Faults: SIGKILL, SIGTERM, SIGSTOP for a while, a full disk (a tmpfs that is filled up, which takes
root; otherwise a limit on the size of files), a folder that is read-only when the run starts, and a
wall clock that jumps. OUT/results.json gets the counts, how runs ended, and what differed; another
--seed in the same workdir goes on with other moments, and is added to it.
"""

import collections
import contextlib
import json
import os
import pathlib
import platform
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
from absl import app, flags, logging

from configs import maskgit_tokenizer
from fsq_jax import train
from fsq_jax.runtime import checkpoint, cli, liveness, sharding
from fsq_jax.runtime.metric_writer import WALL_CLOCK, read_metrics
from fsq_jax.runtime.user_error import UserError
from fsq_jax.runtime.workdir import is_evaluated, load_results, metric_values

PROCESSES = {"one": 1, "four": 4, "devices": 1}
FAULTS = {
    "one": ("SIGKILL",) * 3 + ("SIGTERM", "SIGSTOP", "full disk", "read-only folder", "clock"),
    "four": ("SIGKILL", "SIGTERM"),
    "devices": ("SIGKILL", "SIGTERM"),
}
TOLERANCE = 5e-3  # relative, of metrics on another number of devices: sums are in another order


def tiny_config():
    """A tokenizer that trains in seconds, saves every fourth step, and fits 1 to 4 devices."""
    config = maskgit_tokenizer.get_config("scale=smoke,size=8,levels=4-3")
    config.update(
        steps=20,
        batch_size=12,
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
      file_limit: bytes that a file may have; 0 for no limit.
      clock: whether the wall clock jumps.
    """

    def __init__(self, workdir, log, processes=1, devices=1, file_limit=0, clock=False):
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
                _be_a_process(workdir, log, file_limit, clock)
            self.pids.append(pid)
        self.statuses = {}

    def signal(self, pid: int, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)

    def wait(self, seconds: float) -> bool:
        """Waits that long at most; whether all processes have ended."""
        until = time.monotonic() + seconds
        while True:
            for pid in set(self.pids) - set(self.statuses):
                if os.waitpid(pid, os.WNOHANG)[0]:
                    self.statuses[pid] = None
            if len(self.statuses) == len(self.pids):
                return True
            if time.monotonic() >= until:
                return False
            time.sleep(0.02)


def _be_a_process(workdir: str, log: str, file_limit: int, clock: bool) -> None:
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
        train.train(tiny_config(), workdir)
        if jax.process_count() > 1:
            jax.distributed.shutdown()
    except (UserError, OSError) as error:
        print(f"Error: {error}", file=sys.stderr)
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


def summary(workdir: str) -> dict:
    """What a finished training left, without what a clock says."""
    lines = [
        {k: v for k, v in line.items() if k not in WALL_CLOCK} for line in read_metrics(workdir)
    ]
    weights = checkpoint.fingerprint(checkpoint.load_weights(workdir)[1])
    values = metric_values(load_results(workdir))
    return {"lines": lines, "results": values, "weights": weights}


def in_a_child(function, *arguments) -> dict:
    """What a function returns, as JSON: this process starts no JAX, so that it can fork."""
    read, write = os.pipe()
    if not (pid := os.fork()):
        with contextlib.suppress(BaseException), os.fdopen(write, "w") as file:
            json.dump(function(*arguments), file)
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as file:
        text = file.read()
    os.waitpid(pid, 0)
    return json.loads(text)


def largest_difference(first: dict, second: dict) -> float:
    """The largest relative difference of two trainings' metrics; infinite for other lines."""
    keys = [
        [(line["step"], line["split"], *sorted(line)) for line in s["lines"]]
        for s in (first, second)
    ]
    if keys[0] != keys[1] or first["results"].keys() != second["results"].keys():
        return float("inf")
    pairs = [
        (a[k], b[k])
        for a, b in zip(first["lines"], second["lines"], strict=True)
        for k in a
        if isinstance(a[k], float)
    ]
    pairs += [(value, second["results"][name]) for name, value in first["results"].items()]
    return max(abs(a - b) / max(abs(a), abs(b), 1e-6) for a, b in pairs)


class Scenario:
    """Trainings of one kind, one after the other, and what has become of them."""

    def __init__(self, name: str, folder: str, stop_seconds: float):
        self.name, self.stop_seconds, self.folder = name, stop_seconds, f"{folder}/{name}"
        self.disk = Disk(self.folder)
        self.log, self.workdir = f"{folder}/{name}.log", f"{self.folder}/run"
        self.faults, self.endings = collections.Counter(), collections.Counter()
        self.trainings, self.differences, self.equal = 0, [], 0
        self.tracebacks, self.slowest, self.starts = 0, 0.0, 0
        self.sentences = {}
        shutil.rmtree(self.workdir, ignore_errors=True)
        known = pathlib.Path(folder, f"{name}.quiet.json")
        if not known.exists():
            for _ in range(2):  # the second one finds everything compiled, and is timed
                shutil.rmtree(self.workdir, ignore_errors=True)
                begin = time.monotonic()
                self.start().wait(600)
                seconds = time.monotonic() - begin
            quiet = in_a_child(summary, self.workdir) | {"seconds": seconds}
            known.write_text(json.dumps(quiet))
            shutil.rmtree(self.workdir)
        self.quiet = json.loads(known.read_text())
        self.seconds = self.quiet.pop("seconds")

    def start(self, **options) -> Run:
        devices = random.randint(1, 4) if self.name == "devices" and self.starts else 1
        self.starts += 1
        return Run(self.workdir, self.log, PROCESSES[self.name], devices, **options)

    def is_done(self) -> bool:
        return is_evaluated(self.workdir, tiny_config().steps)

    def one_fault(self) -> None:
        """Starts the training, disturbs it once, and compares it where it is done."""
        fault = random.choice(FAULTS[self.name])
        options = {"clock": fault == "clock"}
        if fault == "full disk" and not self.disk.own:
            options["file_limit"] = random.randint(1_000, 100_000)
        read_only = fault == "read-only folder" and self.disk.read_only(True)
        if fault == "read-only folder" and not read_only:
            return
        run = self.start(**options)
        self._wait_for_the_moment(run)
        after = 30.0 if read_only else random.uniform(0, 1)
        took = disturb(fault, run, after, self.stop_seconds, self.disk)
        self.disk.read_only(False)
        self.disk.make_room()
        self.faults[fault] += 1
        self._note(fault, took)
        if self.is_done():
            self._compare()

    def _wait_for_the_moment(self, run: Run) -> None:
        """A random part of what a training takes; or until it has come some steps further, which on
        a busy machine takes longer than it did when nothing else was at work."""
        if random.random() < 0.25:
            run.wait(random.uniform(0, self.seconds))
            return
        steps = self._steps() + random.randint(1, 8)
        until = time.monotonic() + 10 * self.seconds
        while self._steps() < steps and time.monotonic() < until:
            if run.wait(0.02):
                return

    def _steps(self) -> int:
        with contextlib.suppress(OSError, UserError):
            return max((line["step"] for line in read_metrics(self.workdir)), default=0)
        return 0

    def _note(self, fault: str, took: float) -> None:
        said = pathlib.Path(self.log).read_text()
        self.tracebacks += "Traceback (most recent call last)" in said
        errors = [line for line in said.splitlines() if line.startswith("Error: ")]
        if errors:
            self.sentences.setdefault(fault, errors[-1].replace(self.folder, "FOLDER"))
        self.endings["with a sentence" if errors else "without one"] += 1
        if fault == "SIGKILL" and "lost" in " ".join(errors):
            self.slowest = max(self.slowest, took)

    def _compare(self) -> None:
        left = in_a_child(summary, self.workdir)
        self.trainings += 1
        self.equal += left == self.quiet
        self.differences.append(largest_difference(self.quiet, left))
        shutil.rmtree(self.workdir)

    def finish(self) -> None:
        """Lets the last training end undisturbed."""
        if os.path.isdir(self.workdir):
            self.start().wait(600)
            self._compare()
        self.disk.close()

    def report(self) -> dict:
        """What results.json has of the scenario."""
        return {
            "faults": dict(self.faults),
            "starts": self.starts,
            "trainings": self.trainings,
            "equal_to_the_last_bit": self.equal,
            "largest_relative_difference": max(self.differences, default=None),
            "starts_with_a_traceback": self.tracebacks,
            "endings": dict(self.endings),
            "seconds_until_survivors_of_a_loss_ended": round(self.slowest, 1),
            "disk": "tmpfs" if self.disk.own else "limit on files",
            "sentences": self.sentences,
        }


def record(folder: str, done: dict) -> None:
    """Adds what was done to FOLDER/results.json, in place of an older run of the same seed."""
    os.makedirs(folder, exist_ok=True)
    path = pathlib.Path(folder, "results.json")  # written by no function that starts JAX
    runs = json.loads(path.read_text())["runs"] if path.exists() else []
    runs = [run for run in runs if run["seed"] != done["seed"]] + [done]
    counts = [result["faults"] for run in runs for result in run["scenarios"].values()]
    total = sum((collections.Counter(count) for count in counts), collections.Counter())
    text = json.dumps({"faults": sum(total.values()), "of_each": total, "runs": runs}, indent=2)
    path.write_text(text + "\n")


def main(argv) -> None:
    del argv
    options = flags.FLAGS
    random.seed(options.seed)
    logging.set_verbosity(logging.FATAL)
    os.makedirs(options.workdir, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", os.path.abspath(f"{options.workdir}/compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    liveness.BEAT_SECONDS = min(liveness.BEAT_SECONDS, 1.0)
    begin, results = time.monotonic(), {}

    def note(scenario):  # after each fault: this program may be disturbed, too
        results[scenario.name] = scenario.report()
        record(
            options.out,
            {
                "seed": options.seed,
                "scenarios": results,
                "seconds": round(time.monotonic() - begin),
                "stop_seconds": options.stop_seconds,
                "jax": jax.__version__,
                "platform": platform.platform(),
            },
        )

    shares = dict(zip(options.scenarios, map(int, options.shares), strict=True))
    for name in options.scenarios:
        scenario = Scenario(name, os.path.abspath(options.workdir), options.stop_seconds)
        kills = round(options.kills * shares[name] / sum(shares.values()))
        while sum(scenario.faults.values()) < kills:
            if time.monotonic() - begin > options.minutes * 60:
                break
            scenario.one_fault()
            print(f"{name}: {dict(scenario.faults)}, {scenario.trainings} trainings", flush=True)
            note(scenario)
        scenario.finish()
        note(scenario)
    print(json.dumps(results, indent=2))
    failed = [
        n
        for n, r in results.items()
        if (r["largest_relative_difference"] or 0) > (TOLERANCE if n == "devices" else 0)
    ]
    sys.exit(f"Not the same as undisturbed: {failed}" if failed else 0)


if __name__ == "__main__":
    flags.DEFINE_integer("kills", 100, "How many faults, over all scenarios.", 1)
    flags.DEFINE_string("workdir", "runs/faults", "Folder for trainings, logs and programs.")
    flags.DEFINE_string("out", "experiments/results/faults", "Folder of results.json.")
    flags.DEFINE_list("scenarios", ["one", "four", "devices"], "Which ones.")
    flags.DEFINE_list("shares", ["8", "1", "1"], "Of the faults, in the order of scenarios.")
    flags.DEFINE_float("stop_seconds", 60.0, "How long SIGSTOP lasts.")
    flags.DEFINE_float("minutes", 60.0, "No new fault after so many minutes.")
    flags.DEFINE_integer("seed", 0, "Another seed, other moments.")
    app.run(main)
