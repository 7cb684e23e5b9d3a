"""The small trained weights that the package brings: trained, rounded, measured, put into place.

python -m experiments.shipped --workdir=runs/shipped

Trains the quick start's FSQ tokenizer and a masked transformer on its tokens, and for each task of
UViM a label autoencoder and a language model, all on the embedded scenes. Each becomes
fsq_jax/pretrained/files/NAME/, in bfloat16 and with its card, before the next stage reads it as
pretrained:NAME, so that a stage II is trained on the tokens of the very file that is shipped; what
is measured is measured of that file. Configs, curves and results go to experiments/results/shipped,
with the rows of docs/models.md. Started again it goes on where it was stopped.
"""

import os
import pathlib
import shutil

import ml_collections
from absl import flags

from experiments.quickstart import maskgit, runner, uvim
from fsq_jax import evaluate, export
from fsq_jax.formats import weights_file
from fsq_jax.pretrained import shipped, weights
from fsq_jax.reports import comparison, html
from fsq_jax.runtime import bounded, cli
from fsq_jax.runtime.progress import log

COMMAND = "python -m experiments.shipped"
RESULTS = pathlib.Path(__file__).parent / "results" / "shipped"
PAGE = pathlib.Path(__file__).parents[1] / "docs" / "models.md"
BEGIN, END = "<!-- written by experiments.shipped -->\n", "\n<!-- end -->"
TASKS = ("depth", "panoptic", "colorization")
# Stage -> what it is called in the table, and which of its metrics stand there.
ROWS = {
    "maskgit_tokenizer": ("MaskGIT, tokenizer", ("reconstruction/psnr", "codebook/usage")),
    "maskgit_transformer": (
        "MaskGIT, masked transformer",
        ("compression/bits_per_token", "sampling/fd_random"),
    ),
    "uvim_base": ("UViM, {task}, label autoencoder", ()),
    "uvim_lm": ("UViM, {task}, language model", ()),
}
TASK_METRICS = {
    "depth": "depth/rmse",
    "panoptic": "panoptic/pq",
    "colorization": "colorization/psnr",
}


def run(workdir: str, scale: float = 1.0, results: pathlib.Path = RESULTS) -> None:
    """Does all that is not yet done.

    Args:
      workdir: gets a folder for each training.
      scale: multiplies steps and records; 1 for the real thing, 0.01 for a test.
      results: gets a folder for each of the weights, and table.md.
    """

    def do(name: str, config) -> str:
        path = ship(name, config, os.path.join(workdir, name), results / name)
        write_table(results)
        return path

    tokenizer = do("scenes-tokenizer", maskgit.tokenizer_config("fsq", scale))
    tokens = os.path.join(workdir, "tokens")
    maskgit.encode_once(tokenizer, tokens)
    do("scenes-maskgit", maskgit.transformer_config(tokenizer, tokens, scale))
    for task in TASKS:
        base = do(f"scenes-{task}-base", uvim.base_config("fsq", scale, task=task))
        do(f"scenes-{task}", uvim.lm_config("fsq", base, scale, task=task))
    print(table().text())


def ship(name: str, config: ml_collections.ConfigDict, workdir: str, results: pathlib.Path) -> str:
    """Trains weights and puts them into the package unless that is done; their short name."""
    log(f"{name} …")
    path, measured = shipped.PREFIX + name, results / "results.json"
    if not runner.train_once(config, workdir) and measured.exists():
        return path
    folder, loaded = str(shipped.FOLDER / name), weights.load(workdir)
    export.write(loaded, {}, "safetensors", folder, "bfloat16")
    os.makedirs(results, exist_ok=True)
    found = evaluate.evaluate(path, out=str(measured))
    notes = {"made by": f"`{COMMAND}`", "run": f"`experiments/results/shipped/{name}`"}
    export.write(loaded, found, "safetensors", folder, "bfloat16", notes)
    for file in ("config.json", "metrics.jsonl"):
        shutil.copy(os.path.join(workdir, file), results / file)
    return path


def write_table(results: pathlib.Path) -> None:
    """Writes RESULTS/table.md and, where it is of the package's own results, docs/models.md."""
    rows = table().text()
    (results / "table.md").write_text(rows + "\n")
    if results == RESULTS:
        before, _, rest = PAGE.read_text().partition(BEGIN)
        after = rest.partition(END)[2]
        PAGE.write_text(f"{before}{BEGIN}\n{rows}\n{END}{after}")


def table() -> html.Table:
    """A row for each of the weights that the package brings, from what stands in their files."""
    rows = []
    for name in shipped.names():
        path = shipped.local_path(shipped.PREFIX + name)
        loaded, metadata = weights.load(path), weights_file.read_safetensors(path)[1]
        config, results = loaded.config, bounded.parse_json(metadata["results"], path, dict)
        title, metrics = ROWS[config.stage]
        task = config.get("task", {}).get("name", "")
        values = []
        for metric in metrics or (TASK_METRICS[task],):
            text, form = comparison.title_and_form(metric)
            values.append(f"{text.rstrip(' ↑↓')}: {form.format(results[metric]['value'])}")
        count = sum(array.size for array in weights_file.flatten(loaded.params).values())
        rows.append(
            (
                f"`{shipped.PREFIX}{name}`",
                title.format(task=task),
                f"{config.data.source}, {config.data.size} px",
                f"{count:,}",
                f"{os.path.getsize(path) / 1e6:.2f} MB",
                "; ".join(values),
            )
        )
    return html.Table(("weights", "what", "data", "parameters", "file", "measured"), rows)


def main(argv) -> None:
    del argv
    run(flags.FLAGS.workdir, flags.FLAGS.steps_scale)


if __name__ == "__main__":
    flags.DEFINE_string("workdir", "runs/shipped", "Folder that is written and resumed from.")
    flags.DEFINE_float("steps_scale", 1.0, "Multiplies steps and records; 0.01 for a try.")
    cli.run(main)
