"""Trains a config for every point of a grid and several seeds; ends in one table.

python -m fsq_jax.sweep --workdir=runs/sweep --config=configs/maskgit_tokenizer.py:scale=bench \
    --grid levels=8-5-5-5,7-5-5-5-5 --grid config.optim.learning_rate=1e-4,4e-4 --seeds=3

A name in --grid is one of the config's arguments, or config.KEY of any of its values. The runs are
dealt out over the GPUs at hand (--per_gpu of them share one). Started again, it goes on: what is
done is not done again, and a run that fails stops no other. What follows "--" goes to every run
("-- --config.steps=100"). WORKDIR/table.md gets the table: one row per point of the grid, mean and
deviation over the seeds.
"""

import itertools
import os
import re
import runpy
from collections.abc import Mapping, Sequence

import jax
from absl import flags

from fsq_jax import quantizers
from fsq_jax.launcher import plan, pool
from fsq_jax.launcher.plan import Run
from fsq_jax.reports import comparison, html
from fsq_jax.runs.config import override_config, parse_overrides
from fsq_jax.runtime import cli, outputs
from fsq_jax.runtime.files import written_whole
from fsq_jax.runtime.progress import log
from fsq_jax.runtime.user_error import UserError
from fsq_jax.runtime.workdir import load_results
from fsq_jax.scoring import protocols

KEY = "config."  # how the name of a config's value begins; other names are arguments


def points(grid: Sequence[str]) -> list[dict[str, str]]:
    """All combinations of "NAME=VALUE,VALUE" axes, the last one fastest.

    Raises:
      UserError: an axis has no values, or one name stands twice.
    """
    axes = {}
    for axis in grid:
        name, _, values = axis.partition("=")
        listed = [value for value in values.split(",") if value]
        if not name or not listed or name in axes:
            raise UserError(f"--grid {axis!r} is not NAME=VALUE,VALUE, of a name for itself.")
        axes[name] = listed
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def plan_runs(
    config: str, grid: Sequence[str], seeds: int, workdir: str, changes: Sequence[str] = ()
) -> list[Run]:
    """One run for each point of the grid and each seed.

    Args:
      config: a config's file and arguments, as of --config.
      grid: axes, see `points`.
      seeds: 0 ... seeds - 1 for each.
      workdir: gets a folder for each run.
      changes: further arguments of every run.

    Raises:
      UserError: a point is no config, before anything is run.
    """
    runs = []
    for point in points(grid):
        arguments = [f"{n}={v}" for n, v in point.items() if not n.startswith(KEY)]
        values = {n.removeprefix(KEY): v for n, v in point.items() if n.startswith(KEY)}
        text = cli.config_path(config)
        if arguments:
            text += ("," if ":" in text else ":") + ",".join(arguments)
        check(text, values)
        for seed in range(seeds):
            name = folder_name(point | {"seed": str(seed)})
            command = (
                "-m",
                "fsq_jax.train",
                f"--config={text}",
                f"--workdir={os.path.join(workdir, name)}",
                f"--config.seed={seed}",
                *(f"--config.{key}={value}" for key, value in values.items()),
                *changes,
            )
            runs.append(Run(name, ((plan.RESULTS, command),), point | {"seed": seed}))
    return runs


def check(text: str, values: Mapping[str, str]) -> None:
    """Raises a UserError unless FILE:ARGUMENTS is a config that has these keys."""
    path, _, argument = text.partition(":")
    get_config = runpy.run_path(path)["get_config"]
    config = get_config(argument) if argument else get_config()
    override_config(config, parse_overrides(f"{key}={value}" for key, value in values.items()))
    if "quantizer" in config:
        quantizers.of_config(config)  # which knows what levels can't be


def folder_name(point: Mapping[str, str]) -> str:
    """ "levels=8-5-5-5,seed=0"; what a path can't hold becomes a dash."""
    shown = (f"{name.rpartition('.')[2]}={value}" for name, value in point.items())
    return re.sub(r"[^\w.,=+-]+", "-", ",".join(shown))


def table(workdir: str, runs: Sequence[Run]) -> html.Table:
    """One row per point of the grid, one column per metric: mean and deviation over the seeds.

    Raises:
      UserError: with the keys that differ, where a metric was measured in two ways.
    """
    results = {
        run.name: load_results(plan.folder(workdir, run))
        for run in runs
        if plan.recorded(workdir, run)
    }
    found = dict.fromkeys(metric for result in results.values() for metric in result)
    metrics = comparison.ordered(found)
    for metric in metrics:
        protocols.check_comparable(
            metric,
            {
                name: result[metric]["protocol"]
                for name, result in results.items()
                if metric in result
            },
        )
    rows = {}
    for run in runs:
        point = tuple(str(value) for name, value in run.facts.items() if name != "seed")
        of_seeds = rows.setdefault(point, [])
        if run.name in results:
            of_seeds.append(results[run.name])
    names = [name for name in runs[0].facts if name != "seed"]
    header = (*names, *(comparison.title_and_form(m)[0] for m in metrics), "seeds")
    return html.Table(
        header,
        [
            (
                *point,
                *(
                    comparison.cell(m, [result[m]["value"] for result in of_seeds if m in result])
                    for m in metrics
                ),
                str(len(of_seeds)),
            )
            for point, of_seeds in rows.items()
        ],
    )


def sweep(runs: Sequence[Run], workdir: str, per_gpu: int = 1, seconds: float = 0.0) -> list[str]:
    """Runs what is left and writes WORKDIR/table.md; returns a sentence for each run that failed.

    Args:
      runs: see `plan_runs`.
      workdir: of all of them.
      per_gpu: how many share a GPU; on a machine without one, how many run at once.
      seconds: after which nothing new is begun and the rest is asked to save; 0 for no end.
    """
    outputs.check_folder(workdir)
    places = pool.Pool(workdir, runs, per_gpu, os.environ | pool.compilation_cache(workdir))
    log(f"{len(places.waiting)} of {len(runs)} runs are left.")
    pool.work(places, seconds, lambda run: None)
    written = table(workdir, runs).text()
    with written_whole(os.path.join(workdir, "table.md")) as file:
        file.write(written + "\n")
    print(written)
    return list(places.failed.values())


def main(argv) -> None:
    options = flags.FLAGS
    jax.config.update("jax_platforms", "cpu")  # the GPUs are for the runs
    runs = plan_runs(options.config, options.grid, options.seeds, options.workdir, argv[1:])
    if options.commands:
        for run in runs:
            print("python", *run.commands[0][1])
    elif failed := sweep(runs, options.workdir, options.per_gpu, options.seconds):
        raise UserError(" ".join(failed))


if __name__ == "__main__":
    flags.DEFINE_string("config", None, "A config's file and arguments.", required=True)
    flags.DEFINE_string("workdir", None, "Folder that gets one folder per run.", required=True)
    flags.DEFINE_multi_string("grid", [], "NAME=VALUE,VALUE; may be given several times.")
    flags.DEFINE_integer("seeds", 1, "Seeds of each point.", lower_bound=1)
    flags.DEFINE_integer("per_gpu", 1, "Runs at once on a GPU.", lower_bound=1)
    flags.DEFINE_float("seconds", 0.0, "When to stop; 0: when all is done.", lower_bound=0.0)
    flags.DEFINE_bool("commands", False, "Print the commands, and run nothing.")
    cli.run(main, takes_arguments=True)
