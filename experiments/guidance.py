"""Samples of a masked transformer at several strengths of guidance, held against real images.

python -m experiments.guidance --workdir=runs/maskgit --guidance=0,0.1,0.2 --out=sweep/entries.json

OUT is a list with one entry for each strength: {"guidance", metrics by their names, "protocol"}.
It is written after each, and a sweep that was cut off goes on there.
"""

import dataclasses
import os

from absl import flags

from fsq_jax import runs
from fsq_jax.evaluators.generation import balance, sample_moments
from fsq_jax.evaluators.run_scorer import RunScorer
from fsq_jax.runtime import bounded, cli
from fsq_jax.runtime.files import write_json
from fsq_jax.runtime.progress import log


def sweep(
    path: str,
    stage_1: str,
    strengths: list[float],
    out: str,
    num_samples: int = 0,
    references: str = "",
) -> None:
    """Writes what is left of a sweep.

    Args:
      path: a masked transformer, as a run or an export.
      stage_1: its tokenizer.
      strengths: of guidance, α of section 4.3.
      out: JSON file.
      num_samples: of each strength; 0 for as many as the run's config says.
      references: folder of runs, whose references/ are used and added to; "" for none.
    """
    found, partial = [], f"{out}.partial"
    if os.path.exists(partial):
        found = bounded.read_json(partial, [dict])
    real = None
    for strength in strengths[len(found) :]:
        run = runs.load(path, stage_1, overrides={"sampling.guidance": strength})
        if references:  # an export has no neighbours of its own
            run = dataclasses.replace(run, workdir=os.path.join(references, "sweep"))
        settings = run.config.evals.generation
        number = num_samples or settings.num_samples
        network = RunScorer(
            run, settings.features, settings.protocol, settings.weights, every_metric=True
        )
        if real is None:
            real = network.reference(
                settings.reference_split, settings.reference_limit, settings.reference
            )
        values, record = network.measure(
            sample_moments(run, network, number),
            real,
            settings.get("published_reference", ""),
            sampling=dict(run.facts.sampling),
            seed=run.seed,
            class_balance=balance(number, run.facts.num_classes),
        )
        found.append(
            {"guidance": strength, "steps": run.step, "device": run.protocol["device"]}
            | {f"sampling/{name}": value for name, value in values.items()}
            | {"protocol": {"sampling": dict(run.protocol) | record}}
        )
        distance = next(iter(values))
        log(f"guidance {strength}: {distance} {values[distance]:.3f}")
        write_json(partial, found)
    write_json(out, found)


def main(argv) -> None:
    del argv
    options = flags.FLAGS
    strengths = [float(text) for text in options.guidance]
    sweep(
        options.workdir,
        options.stage_1,
        strengths,
        options.out,
        options.num_samples,
        options.references,
    )


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Masked transformer: a run or an export.", required=True)
    flags.DEFINE_string("stage_1", "", "Its tokenizer, where it is not where the run says.")
    flags.DEFINE_list("guidance", ["0.0"], "Strengths.")
    flags.DEFINE_integer("num_samples", 0, "Of each strength; 0: as the config says.")
    flags.DEFINE_string("references", "", "Folder of runs, whose references/ are shared.")
    flags.DEFINE_string("out", None, "JSON file to write.", required=True)
    cli.run(main)
