"""The results of an experiment: a list with one entry for each run, from which all else is drawn.

    OUT/results.json    [{"run", "quantizer", "levels" or "codebook_size", "seed", "stage", "steps",
                        "device", metrics by their names, "protocol": {group of metrics: facts}}]
    OUT/runs/NAME/      config.json, metrics.jsonl, results.json and the last picture of each run
"""

import json
import os
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from experiments import carry, plan
from experiments.plan import Run
from fsq_jax.runtime.files import write_json
from fsq_jax.runtime.workdir import load_config, load_results

Entry = Mapping[str, Any]


def entry(workdir: str, run: Run) -> dict[str, Any] | None:
    """The entry of a run that is done; None for one that is not, or has nothing to say."""
    if not run.facts or not plan.recorded(workdir, run):
        return None
    path = plan.folder(workdir, run)
    results = load_results(path)
    if not results:
        return None
    first = next(iter(results.values()))
    values = {"run": run.name, **run.facts, "steps": first["step"]}
    if os.path.exists(os.path.join(path, "config.json")):
        config = load_config(path)
        values |= {"batch_size": config.batch_size}
    values["device"] = first["protocol"].get("device", "")
    values |= {name: result["value"] for name, result in results.items()}
    values["protocol"] = {
        name.split("/")[0]: {k: v for k, v in result["protocol"].items() if k != "level_histograms"}
        for name, result in results.items()
    }
    return values


def write(workdir: str, runs: Sequence[Run], out: str) -> list[dict[str, Any]]:
    """Writes OUT/results.json, and the records of the runs in it; returns the entries.

    Entries of runs that are not in this workdir stay as they are.
    """
    found = {}
    for run in runs:
        if (made := entry(workdir, run)) is not None:
            found[run.name] = made
            carry.copy_records(workdir, run, os.path.join(out, "runs"))
    known = {run.name for run in runs}
    kept = {e["run"]: e for e in read(out) if e["run"] in known} | found
    ordered = [kept[run.name] for run in sorted(runs, key=lambda r: r.name) if run.name in kept]
    if ordered:
        write_json(os.path.join(out, "results.json"), ordered)
    return ordered


def read(out: str) -> list[dict[str, Any]]:
    """The entries of OUT/results.json; none where there is no such file."""
    path = os.path.join(out, "results.json")
    if not os.path.exists(path):
        return []
    with open(path) as file:
        return json.load(file)


def select(found: Iterable[Entry], **facts) -> list[Entry]:
    """The entries that have all these facts."""
    return [e for e in found if all(e.get(name) == value for name, value in facts.items())]


def values(found: Iterable[Entry], metric: str) -> list[float]:
    """A metric of all entries that have it."""
    return [e[metric] for e in found if metric in e]


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation of a few runs; deviation None of a single one."""

    mean: float
    deviation: float | None
    count: int

    def text(self, form: str = "{:.3g}") -> str:
        if self.deviation is None:
            return form.format(self.mean)
        return f"{form.format(self.mean)} ± {form.format(self.deviation)}"


def spread(numbers: Sequence[float]) -> Spread | None:
    """Mean and deviation; None of no numbers."""
    if not numbers:
        return None
    deviation = statistics.stdev(numbers) if len(numbers) > 1 else None
    return Spread(statistics.fmean(numbers), deviation, len(numbers))
