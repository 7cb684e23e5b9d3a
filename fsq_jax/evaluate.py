"""Evaluates trained weights: a run, whose results.json takes the numbers, an export or a file.

With the evaluator "codebook", WORKDIR/codebook/index.html shows how the codes are used.

python -m fsq_jax.evaluate --workdir=runs/tokenizer
python -m fsq_jax.evaluate --workdir=runs/maskgit --evals=generation --set=sampling.guidance=1.0
python -m fsq_jax.evaluate --workdir=tokenizer_imagenet256_checkpoint --data_dir=DIR \
    --evals=reconstruction --out=results.json
python -m fsq_jax.evaluate --workdir=maskgit_imagenet256_checkpoint \
    --stage_1=tokenizer_imagenet256_checkpoint --evals=generation --out=results.json

Files are MaskGIT's flax msgpack, UViM's .npz, or safetensors exports; of the Hugging Face hub, too,
as `hf:OWNER/NAME[/FILE][@REVISION]`, and those that come with the package as pretrained:NAME.
"""

import jax
from absl import flags

from fsq_jax import evaluators, runs
from fsq_jax.evaluators.predictor import Predictor
from fsq_jax.reports import codebook as codebook_page
from fsq_jax.runs.config import data_overrides, parse_overrides
from fsq_jax.runtime import cli, outputs, sharding
from fsq_jax.runtime.files import write_json
from fsq_jax.runtime.progress import log
from fsq_jax.runtime.user_error import UserError, did_you_mean
from fsq_jax.runtime.workdir import save_results, with_overrides


def evaluate(
    path: str,
    names: list[str] | None = None,
    step: int | None = None,
    overrides=None,
    stage_1: str = "",
    out: str = "",
) -> dict[str, dict]:
    """{metric: {"value", "protocol", "step"}} of weights; a run keeps them in its results.json.

    `path`, `stage_1`, `step` and `overrides` are those of `runs.load`.

    Args:
      names: which of `config.evals`; all by default.
      out: JSON file that gets them, too, and nothing else.

    Raises:
      UserError: there are no such weights, or the config has no such evaluator.
    """
    outputs.check_file(out)
    predictor = runs.load(path, stage_1, step, overrides)
    kept = predictor.workdir and _check_workdir(predictor.workdir, out)
    results = with_overrides(measure(predictor, names), overrides or {})
    if jax.process_index() == 0:
        for name, result in results.items():  # first of all: a full disk costs none of them
            print(f"{name}: {result['value']:.6g}", flush=True)
        if out:
            write_json(out, results)
        if kept:
            save_results(predictor.workdir, results)
    if "codebook/usage" in results and kept:
        codebook_page.write(predictor)
    return results


def _check_workdir(workdir: str, out: str) -> bool:
    """Whether the run's folder takes the results; a UserError where nothing else would."""
    try:
        outputs.check_folder(workdir)
    except UserError as error:
        if not out:
            raise UserError(f"{str(error).rstrip('.')}; give --out=FILE for the results.") from None
        log(f"{error} The results are in {out} alone.")
        return False
    return True


def measure(predictor: Predictor, names: list[str] | None = None) -> dict[str, dict]:
    """{metric: {"value", "protocol", "step"}} by the named ones of `config.evals`."""
    evals = predictor.config.evals.to_dict()
    for name in names or []:
        if name not in evals:
            raise UserError(f"This run has no evaluator {name!r}{did_you_mean(name, evals)}")
    return evaluators.evaluate({name: evals[name] for name in names or evals}, predictor)


def main(argv) -> None:
    del argv
    sharding.initialize_distributed()
    options = flags.FLAGS
    overrides = data_overrides(options.data, options.data_dir, options.size)
    overrides |= parse_overrides(options.set)
    evaluate(options.workdir, options.evals, options.step, overrides, options.stage_1, options.out)


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Folder of a run, or file of weights.", required=True)
    flags.DEFINE_string("stage_1", "", "Stage I that a stage II reads; a run names its own.")
    flags.DEFINE_string("data", "", "Data to evaluate on; the run's, or the paper's, by default.")
    flags.DEFINE_string("data_dir", "", "Where TFDS keeps its data sets.")
    flags.DEFINE_integer("size", 0, "Image size in pixels.", lower_bound=0)
    flags.DEFINE_string("out", "", "JSON file for the results.")
    flags.DEFINE_list("evals", [], "Which of the config's evaluators; all by default.")
    flags.DEFINE_integer("step", None, "Which checkpoint; the latest by default.")
    flags.DEFINE_multi_string(
        "set",
        [],
        "KEY=VALUE over the config, such as sampling.guidance=1.0; may be given several times.",
    )
    cli.run(main)
