"""The results of an experiment: a list with one entry for each run, from which all else is drawn.

OUT/results.json    [{"run", "quantizer", "levels" or "codebook_size", "seed", "stage", "steps",
                    "device", metrics by their names, "protocol": {group of metrics: facts}}]
OUT/runs/NAME/      config.json, metrics.jsonl, launches.jsonl and results.json of each run
OUT/missing.json    [{"run", "why"}] of the runs that have no entry
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from experiments import carry
from fsq_jax.launcher import plan, pool
from fsq_jax.launcher.plan import Run
from fsq_jax.reports.spread import Spread as Spread
from fsq_jax.reports.spread import pooled as pooled
from fsq_jax.reports.spread import spread as spread
from fsq_jax.runtime import bounded
from fsq_jax.runtime.files import write_json
from fsq_jax.runtime.workdir import load_config, load_results

Entry = Mapping[str, Any]
SEVERAL = "entries.json"  # of a run with several entries, such as one for each guidance


def of_run(workdir: str, run: Run) -> list[dict[str, Any]]:
    """The entries of a run that is done: one of its results, or those that it wrote itself."""
    path = plan.folder(workdir, run)
    if not run.facts or not plan.recorded(workdir, run):
        return []
    if os.path.exists(own := os.path.join(path, SEVERAL)):
        return [{"run": run.name, **run.facts, **entry} for entry in _listed(own)]
    results = load_results(path)
    return [_entry(path, run, results)] if results else []


def _entry(path: str, run: Run, results: Mapping[str, Mapping]) -> dict[str, Any]:
    """One entry of a run's results.json."""
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
        if made := of_run(workdir, run):
            found[run.name] = made
            carry.copy_records(workdir, run, os.path.join(out, "runs"))
    known = {run.name for run in runs}
    kept = {}
    for old in read(out):
        if old["run"] in known:
            kept.setdefault(old["run"], []).append(old)
    kept |= found
    ordered = [entry for name in sorted(kept) for entry in kept[name]]
    if ordered:
        write_json(os.path.join(out, "results.json"), ordered)
        before = {one["run"]: one["why"] for one in missing(out)}
        lacking = [run for run in runs if run.facts and run.name not in kept]
        write_json(
            os.path.join(out, "missing.json"),
            [
                {
                    "run": run.name,
                    "why": why_missing(workdir, run) or before.get(run.name, "not begun"),
                }
                for run in lacking
            ],
        )
    return ordered


def why_missing(workdir: str, run: Run) -> str:
    """Why a run has no entry, as the launcher noted in its folder; "" of one without notes."""
    launches = pool.launches(plan.folder(workdir, run))
    failed = [line for line in launches if line["status"]]
    if failed:
        error = failed[-1].get("error") or f"exit status {failed[-1]['status']}"
        return f"failed {len(failed)} of {len(launches)} times, last with {error}"
    return "cut off" if launches else ""


def missing(out: str) -> list[dict[str, str]]:
    """The runs that OUT/missing.json names; none where there is no such file."""
    return read(out, "missing.json")


def read(out: str, name: str = "results.json") -> list[dict[str, Any]]:
    """The entries of OUT/results.json, or of another file there; none where there is no such."""
    return _listed(os.path.join(out, name))


def _listed(path: str) -> list[dict[str, Any]]:
    """The objects that a JSON file lists; none where there is no such file."""
    return bounded.read_json(path, [dict]) if os.path.exists(path) else []


def select(found: Iterable[Entry], **facts) -> list[Entry]:
    """The entries that have all these facts."""
    return [e for e in found if all(e.get(name) == value for name, value in facts.items())]


def values(found: Iterable[Entry], metric: str) -> list[float]:
    """A metric of all entries that have it."""
    return [e[metric] for e in found if metric in e]


def differences(ours: Iterable[Entry], theirs: Iterable[Entry], metric: str) -> list[float]:
    """A metric of the first entries minus the second's of the same seed, for seeds of both."""
    first, second = ({e["seed"]: e[metric] for e in g if metric in e} for g in (ours, theirs))
    return [first[seed] - second[seed] for seed in sorted(set(first) & set(second))]
