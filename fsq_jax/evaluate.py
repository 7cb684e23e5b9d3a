"""Evaluates a trained run, and takes the numbers into its results.json.

With the evaluator "codebook", WORKDIR/codebook/index.html shows how the codes are used.

python -m fsq_jax.evaluate --workdir=runs/tokenizer
python -m fsq_jax.evaluate --workdir=runs/maskgit --evals=generation --set=sampling.guidance=1.0
"""

import jax
from absl import flags

from fsq_jax import codebook_page, errors, evaluators, runs, sharding


def evaluate(
    workdir: str, names: list[str] | None = None, step: int | None = None, overrides=None
) -> dict[str, dict]:
    """{metric: {"value", "protocol", "step"}} of a run's checkpoint, saved in its results.json.

    Args:
      workdir: the run's folder.
      names: which of `config.evals`; all by default.
      step: which checkpoint; the latest by default.
      overrides: {dotted config key: value}, such as {"sampling.guidance": 1.0}.

    Raises:
      ValueError: where there is no such run, checkpoint or evaluator.
    """
    config, _, run = runs.load(workdir, step, overrides)
    evals = config.evals.to_dict()
    unknown = sorted(set(names or []) - set(evals))
    if unknown:
        raise ValueError(f"This run has no evaluators {unknown}; it has {sorted(evals)}.")
    chosen = {name: evals[name] for name in names or evals}
    results = evaluators.evaluate(chosen, run)
    if jax.process_index() == 0:
        runs.save_results(workdir, results)
    if "codebook" in chosen:
        codebook_page.write(config, run)
    return results


def main(argv) -> None:
    del argv
    sharding.initialize_distributed()
    results = evaluate(
        flags.FLAGS.workdir, flags.FLAGS.evals, flags.FLAGS.step,
        runs.parse_overrides(flags.FLAGS.set),
    )
    for name, result in results.items():
        print(f"{name}: {result['value']:.6g}")


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
    flags.DEFINE_list("evals", [], "Which of the config's evaluators; all by default.")
    flags.DEFINE_integer("step", None, "Which checkpoint; the latest by default.")
    flags.DEFINE_multi_string("set", [], "KEY=VALUE over the run's config, such as "
                              "sampling.guidance=1.0; may be given several times.")
    errors.run(main)
