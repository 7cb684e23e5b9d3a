"""Measures how training, sampling and evaluation scale over the GPUs of a machine.

python -m experiments.benchmarks.scaling --out=experiments/results/speed/h100_x8 --seconds=540

Rows are named STAGE/PARALLEL/SCALING/GPUS[/processes][/FLAGS]: "data" holds all weights on each
GPU, "fsdp" a part of them; under "weak" the batch grows with the GPUs, under "strong" it is held;
with "processes" each GPU has a process of its own, as on several hosts. OUT/scaling.jsonl gets a
line per row as it is done, OUT/scaling.md the table and the names of those that weren't begun,
because too little time was left. What the file holds already is not measured again;
--rows=PATTERN,... picks rows, --list prints their names.

Compiling takes most of the time, so that rows of a wave compile at once, and are then timed one
after the other while nothing compiles. Those that choose kernels by trying them out (the first of a
stage) have their GPUs for themselves meanwhile; the others find what these chose in XLA's cache.
"""

import fnmatch
import json
import math
import os
import socket
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass

from absl import app, flags

from experiments.benchmarks import apart, scaling_rows, scaling_table
from experiments.benchmarks.scaling_rows import Row
from fsq_jax.launcher import gpus
from fsq_jax.runtime.files import written_whole
from fsq_jax.runtime.user_error import UserError

AT_ONCE = 4  # rows of a wave
TURN = 15.0  # seconds that are kept for each row of a wave, once it has compiled


@dataclass(frozen=True)
class Placed:
    """A row, and the GPUs that it takes."""

    row: Row
    devices: tuple[int, ...]


def next_wave(
    waiting: Sequence[Row],
    num_gpus: int,
    gib: float,
    at_once: int = AT_ONCE,
    seconds: float = math.inf,
) -> list[Placed]:
    """The rows to begin together, the first that are waiting before others.

    No two that choose kernels are on one GPU, nor do they come with one that works meanwhile; none
    comes with a row that is to be before it; what those that wait for their turn hold leaves room,
    in `gib` of a GPU, for the largest; and the `seconds` that are left are enough to compile the
    slowest and for everyone's turn. None where that holds for no row.
    """
    wave, load, choosing = [], [0] * num_gpus, set()
    names = {row.name for row in waiting}
    for row in waiting:
        blocks = [tuple(range(i, i + row.gpus)) for i in range(0, num_gpus, row.gpus)]
        if row.chooses:
            blocks = [b for b in blocks if not choosing.intersection(b)]
        together = [row, *(p.row for p in wave)]
        most = sum(r.held_gib for r in together) + max(r.gib - r.held_gib for r in together)
        full = wave and (len(wave) == at_once or most > gib)
        disturbs = choosing if not row.waits else row.chooses and not all(r.waits for r in together)
        late = max(r.least for r in together) + TURN * len(together) > seconds
        if not blocks or row.after in names or full or disturbs or late:
            continue
        block = min(blocks, key=lambda b: sum(load[i] for i in b))
        for device in block:
            load[device] += 1
        if row.chooses:
            choosing.update(block)
        wave.append(Placed(row, block))
    return wave


def turns(wave: Sequence[Placed]) -> list[list[int]]:
    """Positions of a wave's rows that are timed together: those on other GPUs than the rest."""
    together = []
    for position, placed in enumerate(wave):
        for turn in together:
            if not any(set(placed.devices) & set(wave[i].devices) for i in turn):
                turn.append(position)
                break
        else:
            together.append([position])
    return together


def environments(placed: Placed, names: Sequence[str], cache: str) -> list[dict[str, str]]:
    """Of each of a row's processes, where the machine's GPUs have these names; simulated devices
    of a CPU where it has none."""
    row = placed.row
    own, flags_given = {"JAX_COMPILATION_CACHE_DIR": cache}, scaling_rows.FLAGS.get(row.flags, "")
    per_process = row.gpus // row.processes
    found = []
    for number in range(row.processes):
        mine = placed.devices[number * per_process : (number + 1) * per_process]
        found.append(own | apart.seeing(mine, names, flags_given))
    if row.processes > 1:
        with socket.socket() as free:
            free.bind(("localhost", 0))
            address = f"localhost:{free.getsockname()[1]}"
        for number, environment in enumerate(found):
            environment["JAX_COORDINATOR_ADDRESS"] = address
            environment["JAX_NUM_PROCESSES"] = str(row.processes)
            environment["JAX_PROCESS_ID"] = str(number)
    return found


def run_wave(wave: Sequence[Placed], names: Sequence[str], cache: str, end: float):
    """Yields (row, result) of all of a wave, each as it is done."""
    started = [
        apart.Started(
            p.row.module, p.row.arguments, environments(p, names, cache), waits=p.row.waits
        )
        for p in wave
    ]
    try:
        begin = time.monotonic()
        most = max(p.row.seconds for p in wave) if len(wave) > 1 else math.inf
        limit = min(end - TURN * len(turns(wave)), begin + most)
        while time.monotonic() < limit and not all(s.ready for s in started):
            time.sleep(0.05)
        ready = [s.ready for s in started]
        for position, (placed, one) in enumerate(zip(wave, started, strict=True)):
            if not ready[position]:  # it would disturb those that are timed
                yield placed.row, one.result(0)
        for turn in turns(wave):
            turn = [i for i in turn if ready[i]]
            for i in turn:
                started[i].go()
            for i in turn:
                yield wave[i].row, started[i].result(max(1.0, end - time.monotonic()))
    finally:
        for one in started:
            one.close()


def read(path: str) -> list[dict]:
    """The lines of the file; none where it isn't there."""
    if not os.path.exists(path):
        return []
    with open(path) as file:
        return [json.loads(line) for line in file]


def chosen(rows: Sequence[Row], patterns: Sequence[str]) -> list[Row]:
    """The rows whose names fit one of the patterns, in the order of these; all without any."""
    if not patterns:
        return list(rows)
    found = []
    for pattern in patterns:
        fitting = [row for row in rows if fnmatch.fnmatchcase(row.name, pattern)]
        if not fitting:
            raise UserError(f"No row fits {pattern!r}; --list prints their names.")
        found += [row for row in fitting if row not in found]
    return found


def main(argv) -> None:
    del argv
    options, end = flags.FLAGS, time.monotonic() + flags.FLAGS.seconds
    names = gpus.visible()
    num_gpus = options.gpus or len(names)
    if not num_gpus or (names and num_gpus > len(names)):
        raise UserError(f"--gpus={num_gpus}, and this machine has {len(names)} GPUs.")
    rows = chosen(scaling_rows.rows(num_gpus, options.scale, options.images), options.rows)
    if options.list:
        print(*(row.name for row in rows), sep="\n")
        return
    os.makedirs(options.out, exist_ok=True)
    path = os.path.join(options.out, "scaling.jsonl")
    done = {line["row"] for line in read(path) if "error" not in line}
    waiting = [row for row in rows if row.name not in done]
    with tempfile.TemporaryDirectory() as own:
        cache = os.path.abspath(options.cache or own)
        while wave := next_wave(
            waiting, num_gpus, options.gib, options.at_once, end - time.monotonic()
        ):
            waiting = [row for row in waiting if row not in [p.row for p in wave]]
            for row, result in run_wave(wave, names, cache, end):
                apart.record(row.facts() | result, path)
                write_table(options.out, read(path))
    write_table(options.out, read(path), [row.name for row in waiting])
    if waiting:
        print("not begun:", ", ".join(row.name for row in waiting))


def write_table(out: str, lines: Sequence[dict], not_begun: Sequence[str] = ()) -> None:
    """OUT/scaling.md."""
    with written_whole(os.path.join(out, "scaling.md")) as file:
        file.write(scaling_table.table(lines, not_begun))


if __name__ == "__main__":
    flags.DEFINE_string("out", None, "Folder of the results.", required=True)
    flags.DEFINE_integer("seconds", 540, "Time for all rows.", lower_bound=1)
    flags.DEFINE_list("rows", [], "Patterns of the rows to measure, all by default.")
    flags.DEFINE_bool("list", False, "Print the names of the rows, and measure nothing.")
    flags.DEFINE_integer("gpus", 0, "How many; all by default. Without a GPU, simulated ones.")
    flags.DEFINE_enum("scale", "paper", ["paper", "smoke"], "Size of models and images.")
    flags.DEFINE_integer("images", 50_000, "How many are sampled.", lower_bound=8)
    flags.DEFINE_float("gib", 70.0, "Memory of a GPU that the rows of a wave may take.")
    flags.DEFINE_integer("at_once", AT_ONCE, "Most rows of a wave.", lower_bound=1)
    flags.DEFINE_string(
        "cache", "", "Folder of compiled programs; deleted at the end if not given."
    )
    app.run(main)
