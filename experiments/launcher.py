"""Deals the runs of experiments out over the GPUs at hand; started again, it goes on.

python -m experiments.launcher --experiments=fig3_tradeoff,fig10_levels --per_gpu=4 --seconds=540
python -m experiments.launcher --experiments=table2_uvim --scale=paper --commands

What is done is not done again, a run that fails stops none but those that need it (unless as many
in a row as there are places fail with one error), and results are written as runs finish. After
--seconds nothing new is begun and what runs is asked to save a checkpoint, so that any lease of a
machine is filled. With --pack=FOLDER, what another machine needs to go on is put there in pieces at
the end; --unpack=FOLDER takes it from there at the start.
Where small runs share a GPU, NVIDIA's MPS, if started before, lets them work at the same time and
not in turns: eleven tokenizers on each of two H200 made 250 steps a second together on each
(results/fig3_tradeoff/runs).
What follows "--" goes to every training run ("-- --config.data.workers=2"), or to those of one
stage ("-- uvim_lm:--config.fsdp=True").
"""

import importlib
import os
from collections.abc import Sequence

import jax
from absl import flags

from experiments import carry, entries
from experiments.options import Options
from fsq_jax.launcher import plan, pool
from fsq_jax.launcher.plan import Run
from fsq_jax.runtime import cli
from fsq_jax.runtime.progress import log
from fsq_jax.runtime.user_error import UserError, did_you_mean

EXPERIMENTS = (
    "fig3_tradeoff",
    "fig4_maskgit256",
    "fig8_representation",
    "fig10_levels",
    "table2_uvim",
    "entropy_groups",
    "quantizers",
)


def experiment(name: str):
    """The module of an experiment: `runs(options)` and `write(entries, out)`."""
    if name not in EXPERIMENTS:
        raise UserError(f"There is no experiment {name!r}{did_you_mean(name, EXPERIMENTS)}")
    return importlib.import_module(f"experiments.{name}")


def launch(names: Sequence[str], options: Options, flag_values) -> list[str]:
    """Runs what is left of the named experiments; returns sentences of the runs that failed."""
    modules = {name: experiment(name) for name in names}
    of = {name: module.runs(options) for name, module in modules.items()}
    runs = plan.chosen(plan.merged(run for runs in of.values() for run in runs), flag_values.only)
    if flag_values.commands:
        print_commands(runs, options.scale == "paper")
        return []
    if flag_values.unpack:
        carry.unpack(flag_values.unpack, options.workdir)
    environment = dict(os.environ) | pool.compilation_cache(options.workdir)
    out = {name: results_folder(name, options, flag_values.out) for name in names}

    def on_finished(run: Run) -> None:
        for name, runs in of.items():
            if run.name in {r.name for r in runs}:
                entries.write(options.workdir, runs, out[name])

    failed = {}
    if not flag_values.collect:
        places = pool.Pool(options.workdir, runs, flag_values.per_gpu, environment)
        log(f"{len(places.waiting)} of {len(runs)} runs are left.")
        pool.work(places, flag_values.seconds, on_finished)
        failed = places.failed
    for name, module in modules.items():
        module.write(entries.write(options.workdir, of[name], out[name]), out[name], options)
    if flag_values.pack:
        carry.pack(options.workdir, runs, flag_values.pack, flag_values.pack_mib * 2**20)
    return pool.in_short(failed)


def results_folder(name: str, options: Options, out: str) -> str:
    """Where an experiment's results are written; those of scale=smoke stay beside its runs."""
    folder = {
        "bench": (out, name),
        "paper": (out, f"{name}_paper"),
        "smoke": (options.workdir, "results", name),
    }
    return os.path.join(*folder[options.scale])


def print_commands(runs: Sequence[Run], priced: bool) -> None:
    """Prints the commands of all runs in their order, and what they cost where that is known."""
    total = 0.0
    for run in runs:
        cost = f", about {run.gpu_hours:,.1f} hours of one H100" if priced else ""
        print(f"# {run.name}{cost}")
        for arguments in dict.fromkeys(arguments for _, arguments in run.commands):
            print("python", *arguments)  # once, where one command leaves several files
        total += run.gpu_hours
    if priced:
        print(f"# in all about {total:,.1f} hours of one H100 ({total / 8 / 24:,.1f} days of 8)")


def define_flags(experiments: Sequence[str] = ()) -> None:
    """The launcher's flags; without `experiments` they are one more flag."""
    if not experiments:
        flags.DEFINE_list("experiments", [], "Which experiments, such as fig3_tradeoff.")
    flags.DEFINE_enum("scale", "bench", ["paper", "bench", "smoke"], "As in the configs.")
    flags.DEFINE_integer(
        "seeds", None, "Seeds of what is repeated; the experiment's own number.", lower_bound=1
    )
    flags.DEFINE_string("workdir", "", "Folder of the runs; runs/SCALE by default.")
    flags.DEFINE_string("out", "experiments/results", "Folder of the results.")
    flags.DEFINE_string("data_dir", "", "Where TFDS keeps its data sets.")
    flags.DEFINE_string(
        "encoder", "", "Of scale=paper: weights of UViM's stage II alone, AugReg's file or none."
    )
    flags.DEFINE_string(
        "adm_references", "", "Of scale=paper: folder of ADM's VIRTUAL_imagenet*_labeled.npz."
    )
    flags.DEFINE_integer("per_gpu", 1, "Runs at once on a GPU.", lower_bound=1)
    flags.DEFINE_float("seconds", 0.0, "When to stop; 0: when all is done.", lower_bound=0.0)
    flags.DEFINE_list("only", [], "Beginnings of names of runs: these, and what they need.")
    flags.DEFINE_bool("commands", False, "Print the commands, and run nothing.")
    flags.DEFINE_bool("collect", False, "Run nothing; write what there is.")
    flags.DEFINE_string("pack", "", "Folder for what another machine needs to go on.")
    flags.DEFINE_integer("pack_mib", 60, "How much of it at most.", lower_bound=1)
    flags.DEFINE_string("unpack", "", "Folder with what --pack left.")


def options_of(values, changes: Sequence[str]) -> Options:
    """The options that the flags name; `changes` is what follows "--"."""
    workdir = values.workdir or f"runs/{values.scale}"
    return Options(
        values.scale,
        workdir,
        values.seeds,
        values.data_dir,
        values.encoder,
        values.adm_references,
        tuple(changes),
    )


def run_all(names: Sequence[str], values, changes: Sequence[str]) -> None:
    """`launch` by the flags' values; raises a UserError that names what failed."""
    jax.config.update("jax_platforms", "cpu")  # the GPUs are for the runs
    if failed := launch(names, options_of(values, changes), values):
        raise UserError(" ".join(failed))


def program(*experiments: str) -> None:
    """Parses the flags and launches: the `main` of every experiment."""
    define_flags(experiments)

    def main(argv) -> None:
        names = experiments or flags.FLAGS.experiments
        if not names:
            raise UserError(f"Name --experiments, of {', '.join(EXPERIMENTS)}.")
        run_all(names, flags.FLAGS, argv[1:])

    cli.run(main, takes_arguments=True)


if __name__ == "__main__":
    program()
