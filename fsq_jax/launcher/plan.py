"""What a launcher works through: runs, what each needs of others, and what is left to do.

A run is a folder, which holds all that says how far it has come: a plan goes on where it was cut
off, however that happened.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fsq_jax.runtime import checkpoint
from fsq_jax.runtime.user_error import UserError
from fsq_jax.runtime.workdir import is_evaluated, load_config, load_results

RESULTS = "results.json"


@dataclass(frozen=True)
class Run:
    """A folder that commands fill.

    Attributes:
      name: of the folder; two experiments that name one run share it.
      commands: (file in the folder, arguments of "python") in their order; the file says that the
        command is done. `results.json` of a training run must hold the last step's; where its
        config has no evaluators, the last checkpoint says so.
      facts: what its entry among the results says of it, such as {"quantizer": "fsq", "seed": 0};
        {} for a run that has no entry.
      needs: names of runs whose `weights` it reads.
      weights: file in the folder, left by the last command, that other runs read; it is made only
        if one of them is still to be done. "" for none.
      carried: whether `weights` are worth carrying to the next machine, rather than made there.
      rank: runs of a lower rank are begun first; among equals, the longest.
      gpu_hours: of one H100, estimated; 0 where it is not known.
      places: of a GPU's places, how many it takes.
    """

    name: str
    commands: Sequence[tuple[str, tuple[str, ...]]]
    facts: Mapping[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    weights: str = ""
    carried: bool = True
    rank: int = 0
    gpu_hours: float = 0.0
    places: int = 1


def folder(workdir: str, run: Run) -> str:
    """Where a run's files are."""
    return os.path.join(workdir, run.name)


def has_weights(workdir: str, run: Run) -> bool:
    """Whether what other runs read of this one is there."""
    return bool(run.weights) and os.path.exists(os.path.join(folder(workdir, run), run.weights))


def recorded(workdir: str, run: Run) -> bool:
    """Whether all that a run says of itself is there; its weights may be gone."""
    path = folder(workdir, run)
    return all(_is_done(path, file) for file, _ in run.commands if file != run.weights)


def _is_done(path: str, file: str) -> bool:
    if file != RESULTS:
        return os.path.exists(os.path.join(path, file))
    if not os.path.exists(os.path.join(path, "config.json")):
        return bool(load_results(path))
    config = load_config(path)  # without evaluators, a run leaves no results
    return (
        is_evaluated(path, config.get("steps", 0)) if config.get("evals", True) else _at_end(path)
    )


def commands_left(workdir: str, run: Run, wanted: bool) -> list[tuple[str, tuple[str, ...]]]:
    """The commands of a run that are not done.

    Args:
      workdir: of the experiment.
      run: one of its runs.
      wanted: whether its weights are needed. Where they and the last checkpoint are gone (a run's
        results travel further than its weights), it is trained again.
    """
    path, left = folder(workdir, run), []
    lost = wanted and bool(run.weights) and not has_weights(workdir, run)
    for file, arguments in run.commands:
        if file == run.weights:
            done = not lost
        else:
            done = _is_done(path, file) and not (lost and file == RESULTS and not _at_end(path))
        if not done:
            left.append((file, arguments))
    return left


def _at_end(path: str) -> bool:
    """Whether the checkpoint of the last step is there."""
    steps = checkpoint.saved_steps(path)
    return bool(steps) and steps[-1] == load_config(path).get("steps", 0)


def finished(path: str) -> bool:
    """Whether a training run is at its last step, and evaluated there if its config asks for it."""
    config = load_config(path)
    return _at_end(path) and (not config.get("evals") or is_evaluated(path, config.get("steps", 0)))


def merged(runs: Iterable[Run]) -> list[Run]:
    """The runs of several experiments, each once, in the order in which they are begun.

    Raises:
      UserError: for a need that no run meets.
    """
    by_name = {}
    for run in runs:
        by_name.setdefault(run.name, run)
    for run in by_name.values():
        for need in run.needs:
            if need not in by_name:
                raise UserError(f"Run {run.name!r} needs {need!r}, which is not among the runs.")
    return sorted(by_name.values(), key=lambda run: (run.rank, -run.gpu_hours))


def wanted_weights(workdir: str, runs: Sequence[Run]) -> tuple[list[Run], set[str]]:
    """(runs that are left, names of those whose weights one of them still has to read)."""
    by_name = {run.name: run for run in runs}
    left = {run.name for run in runs if not recorded(workdir, run)}
    while True:
        wanted = {need for name in left for need in by_name[name].needs}
        again = {name for name in wanted if not has_weights(workdir, by_name[name])}
        if again <= left:
            return [run for run in runs if run.name in left], wanted
        left |= again


def chosen(runs: Sequence[Run], names: Sequence[str]) -> list[Run]:
    """The runs whose names begin with one of these, and what they need; all for none."""
    if not names:
        return list(runs)
    kept = {run.name for run in runs if run.name.startswith(tuple(names))}
    if not kept:
        raise UserError(f"No run's name begins with {' or '.join(names)}.")
    by_name = {run.name: run for run in runs}
    while needed := {n for name in kept for n in by_name[name].needs} - kept:
        kept |= needed
    return [run for run in runs if run.name in kept]
