"""Disturbs trainings in all the ways a cluster does, and holds what they leave against a quiet one.

python -m experiments.faults --kills=100 --workdir=runs/faults --stop_seconds=60

A training of seconds is started, disturbed at a random moment, and started again until it is done;
then its metrics.jsonl, results.json and last weights are compared with those of a training that
nobody disturbed. Three scenarios take turns:

  one       one process, one device: everything equal to the last bit
  four      four processes of two devices each, as on two hosts of four: all equal, and the
            survivors of a loss say so in 30 s
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
import shutil
import sys
import time

import jax
from absl import app, flags, logging

from experiments.fault_injection import Disk, Run, disturb
from fsq_jax.launcher import plan
from fsq_jax.runtime import checkpoint, liveness
from fsq_jax.runtime.metric_writer import WALL_CLOCK, read_metrics
from fsq_jax.runtime.user_error import UserError
from fsq_jax.runtime.workdir import load_results, metric_values

# Of each start; "devices" takes other numbers of them after its first.
LAYOUTS = {
    "one": dict(processes=1, devices=1, batch_size=12),
    "four": dict(processes=4, devices=2, batch_size=16),
    "devices": dict(processes=1, devices=1, batch_size=12),
}
FAULTS = {
    "one": ("SIGKILL",) * 3 + ("SIGTERM", "SIGSTOP", "full disk", "read-only folder", "clock"),
    "four": ("SIGKILL", "SIGTERM"),
    "devices": ("SIGKILL", "SIGTERM"),
}
TOLERANCE = 5e-3  # relative, of metrics on another number of devices: sums are in another order


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

    def __init__(self, name: str, folder: str, stop_seconds: float, faults: tuple[str, ...]):
        self.name, self.stop_seconds, self.folder = name, stop_seconds, f"{folder}/{name}"
        self.choice = faults
        self.disk = Disk(self.folder)
        self.log, self.workdir = f"{folder}/{name}.log", f"{self.folder}/run"
        self.faults, self.endings = collections.Counter(), collections.Counter()
        self.devices = collections.Counter()
        self.trainings, self.differences, self.equal = 0, [], 0
        self.slowest, self.starts, self.sentences = 0.0, 0, {}
        shutil.rmtree(self.workdir, ignore_errors=True)
        known = pathlib.Path(folder, f"{name}.quiet.json")
        if not known.exists():
            seconds = self._undisturbed()
            known.write_text(json.dumps(in_a_child(summary, self.workdir) | {"seconds": seconds}))
            shutil.rmtree(self.workdir)
        self.quiet = json.loads(known.read_text())
        self.seconds = self.quiet.pop("seconds")

    def _undisturbed(self, most: int = 8) -> float:
        """Trains without a fault, twice: the second time finds everything compiled. Returns its
        seconds. On a busy machine several processes may have to compile in more than one go."""
        done = 0
        for _ in range(most):
            shutil.rmtree(self.workdir, ignore_errors=True)
            begin = time.monotonic()
            self.start().wait(600)
            if (done := done + self.is_done()) == 2:
                return time.monotonic() - begin
        raise RuntimeError(f"No undisturbed training came to its end; see {self.log}.")

    def start(self, **options) -> Run:
        layout = LAYOUTS[self.name] | options
        if self.name == "devices" and self.starts:
            layout["devices"] = random.randint(1, 4)
        self.starts += 1
        self.devices[layout["processes"] * layout["devices"]] += 1
        return Run(self.workdir, self.log, **layout)

    def is_done(self) -> bool:
        """Whether the last step is evaluated and saved, of which a full disk prevents either."""
        there = os.path.exists(os.path.join(self.workdir, "config.json"))
        return there and plan.finished(self.workdir)

    def one_fault(self) -> None:
        """Starts the training, disturbs it once, and compares it where it is done."""
        fault = random.choice(self.choice)
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
        self._note(fault, took, run)
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

    def _note(self, fault: str, took: float, run: Run) -> None:
        said = pathlib.Path(self.log).read_text()
        errors = [line for line in said.splitlines() if line.startswith("Error: ")]
        if errors:
            self.sentences.setdefault(fault, errors[-1].replace(self.folder, "FOLDER"))
        if "Traceback (most recent call last)" in said:
            ending = "with a traceback"
            shutil.copy(self.log, f"{self.folder}.traceback{self.endings[ending]}.log")
        elif errors:
            ending = "with a sentence"
        else:
            ending = "killed" if any(run.statuses.values()) else "saved or finished"
        self.endings[ending] += 1
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
            "starts_by_devices": {str(n): self.devices[n] for n in sorted(self.devices)},
            "endings": dict(self.endings),
            "trainings": self.trainings,
            "equal_to_the_last_bit": self.equal,
            "largest_relative_difference": max(self.differences, default=None),
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
    scenarios = [result for run in runs for result in run["scenarios"].values()]
    of_each, endings = (
        sum((collections.Counter(s[name]) for s in scenarios), collections.Counter())
        for name in ("faults", "endings")
    )
    total = {"faults": sum(of_each.values()), "of_each": of_each, "endings": endings, "runs": runs}
    path.write_text(json.dumps(total, indent=2) + "\n")


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
        done = {
            "seed": options.seed,
            "scenarios": results,
            "seconds": round(time.monotonic() - begin),
            "stop_seconds": options.stop_seconds,
            "jax": jax.__version__,
            "platform": platform.platform(),
        }
        record(options.out, done)

    shares = dict(zip(options.scenarios, map(int, options.shares), strict=True))
    for name in options.scenarios:
        faults = tuple(options.only) or FAULTS[name]
        scenario = Scenario(name, os.path.abspath(options.workdir), options.stop_seconds, faults)
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
    worst = {name: result["largest_relative_difference"] or 0 for name, result in results.items()}
    failed = [n for n, w in worst.items() if w > (TOLERANCE if n == "devices" else 0)]
    sys.exit(f"Not the same as undisturbed: {failed}" if failed else 0)


if __name__ == "__main__":
    flags.DEFINE_integer("kills", 100, "How many faults, over all scenarios.", 1)
    flags.DEFINE_string("workdir", "runs/faults", "Folder for trainings, logs and programs.")
    flags.DEFINE_string("out", "experiments/results/faults", "Folder of results.json.")
    flags.DEFINE_list("scenarios", ["one", "four", "devices"], "Which ones.")
    flags.DEFINE_list("shares", ["7", "1", "2"], "Of the faults, in the order of scenarios.")
    flags.DEFINE_list("only", [], "Faults to choose from; all by default.")
    flags.DEFINE_float("stop_seconds", 60.0, "How long SIGSTOP lasts.")
    flags.DEFINE_float("minutes", 90.0, "No new fault after so many minutes.")
    flags.DEFINE_integer("seed", 0, "Another seed, other moments.")
    app.run(main)
