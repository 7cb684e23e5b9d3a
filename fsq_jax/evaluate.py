"""Evaluates a trained run, and takes the numbers into its results.json; or files of weights.

With the evaluator "codebook", WORKDIR/codebook/index.html shows how the codes are used.

python -m fsq_jax.evaluate --workdir=runs/tokenizer
python -m fsq_jax.evaluate --workdir=runs/maskgit --evals=generation --set=sampling.guidance=1.0
python -m fsq_jax.evaluate --pretrained=tokenizer_imagenet256_checkpoint --size=256 \
    --data=tfds:imagenet2012 --data_dir=DIR --evals=reconstruction --out=results.json
python -m fsq_jax.evaluate --pretrained=maskgit_imagenet256_checkpoint \
    --tokenizer=tokenizer_imagenet256_checkpoint --evals=generation --out=results.json

Files are MaskGIT's flax msgpack, UViM's .npz, or safetensors exports; --tokenizer names a stage I.
"""

import json

import jax
from absl import flags

from fsq_jax import evaluators
from fsq_jax.reports import codebook as codebook_page
from fsq_jax.runs import predictor, published
from fsq_jax.runs.config import parse_overrides
from fsq_jax.runtime import cli, sharding
from fsq_jax.runtime.user_error import UserError
from fsq_jax.runtime.workdir import save_results


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
      UserError: where there is no such run, checkpoint or evaluator.
    """
    config, _, run = predictor.load(workdir, step, overrides)
    results = measure(config, run, names)
    if jax.process_index() == 0:
        save_results(workdir, results)
    if "codebook/usage" in results:
        codebook_page.write(config, run)
    return results


def measure(config, run, names: list[str] | None = None) -> dict[str, dict]:
    """{metric: {"value", "protocol", "step"}} of a run, by the named ones of `config.evals`."""
    evals = config.evals.to_dict()
    unknown = sorted(set(names or []) - set(evals))
    if unknown:
        raise UserError(f"This run has no evaluators {unknown}; it has {sorted(evals)}.")
    return evaluators.evaluate({name: evals[name] for name in names or evals}, run)


def evaluate_file(
    path: str, tokenizer: str = "", names: list[str] | None = None, overrides=None, out: str = ""
) -> dict[str, dict]:
    """The same of a file of weights; written as JSON to `out`, where one is given.

    Args:
      path, tokenizer, overrides: see `imported.load`.
      names: which of the evaluators that there are for its stage; all by default.
      out: JSON file.
    """
    config, _, run = published.load(path, tokenizer, overrides)
    results = measure(config, run, names)
    if out and jax.process_index() == 0:
        with open(out, "w") as file:
            json.dump(results, file, indent=2)
    return results


def main(argv) -> None:
    del argv
    sharding.initialize_distributed()
    options = flags.FLAGS
    published.check_choice(options, "what to evaluate")
    overrides = published.data_overrides(options.data, options.data_dir, options.size)
    overrides |= parse_overrides(options.set)
    if options.pretrained:
        results = evaluate_file(
            options.pretrained, options.tokenizer, options.evals, overrides, options.out
        )
    else:
        if options.out:
            raise UserError("--out goes with --pretrained; a run has its own.")
        results = evaluate(options.workdir, options.evals, options.step, overrides)
    for name, result in results.items():
        print(f"{name}: {result['value']:.6g}")


if __name__ == "__main__":
    flags.DEFINE_string("workdir", "", "Folder of the run.")
    flags.DEFINE_string("pretrained", "", "File of weights, rather than a run.")
    flags.DEFINE_string("tokenizer", "", "With --pretrained: its stage I's file.")
    flags.DEFINE_string("data", "", "Data to evaluate on; by default the run's, or ImageNet.")
    flags.DEFINE_string("data_dir", "", "Where TFDS keeps its data sets.")
    flags.DEFINE_integer("size", 0, "Image size in pixels.", lower_bound=0)
    flags.DEFINE_string("out", "", "With --pretrained: JSON file for the results.")
    flags.DEFINE_list("evals", [], "Which of the config's evaluators; all by default.")
    flags.DEFINE_integer("step", None, "Which checkpoint; the latest by default.")
    flags.DEFINE_multi_string("set", [], "KEY=VALUE over the run's config, such as "
                              "sampling.guidance=1.0; may be given several times.")
    cli.run(main)
