"""FSQ on a tokenizer that was trained with a VQ, beside FSQ from scratch.

python -m experiments.finetune_fsq --workdir=runs/finetune_fsq
python -m experiments.finetune_fsq --workdir=runs/finetune_fsq \
    --pretrained=tokenizer_imagenet256_checkpoint

Trains a small VQ tokenizer on scenes and writes it as MaskGIT's msgpack (or takes the file of
--pretrained, whose sizes the FSQ runs then have), and starts two FSQ runs that differ in nothing
but `init_from`. OUT gets what was taken, new and left over with both loss curves (finetune.json,
curves.png). What is done already is not done again.
"""

import json
import os

import jax
from absl import flags

from configs import maskgit_tokenizer
from experiments import figures
from fsq_jax import export, train
from fsq_jax.pretrained import maskgit, weights
from fsq_jax.runtime import cli
from fsq_jax.runtime.files import write_json
from fsq_jax.runtime.metric_writer import read_metrics
from fsq_jax.runtime.progress import log
from fsq_jax.runtime.workdir import load_config, load_results

RUNS = {"from_vq": "FSQ, started from the VQ's weights", "scratch": "FSQ, from scratch"}
LEVELS = "8-6-5"


def make_config(quantizer: str, steps: int, size: int):
    """A small tokenizer on scenes: the same but for its quantizer."""
    sizes = f"levels={LEVELS}" if quantizer == "fsq" else "codebook_size=240"
    config = maskgit_tokenizer.get_config(
        f"scale=smoke,size={size},quantizer={quantizer},{sizes},data=scenes"
    )
    config.model.update(filters=16, channel_multipliers=(1, 1, 2), num_res_blocks=1, num_groups=4)
    if quantizer == "vq":
        config.quantizer.channels = 16
    config.loss.update(reconstruction=10.0, adversarial=0.0, perceptual=0.0)
    config.optim.update(learning_rate=2e-3, b1=0.9, warmup_steps=min(20, steps // 2))
    config.ema_decay = 0.95
    config.data.update(
        train_split="train[:1000]",
        eval_split="validation[:128]",
        cache=True,
        min_area=1.0,
        aspect=(1.0, 1.0),
    )
    config.update(
        dict(
            steps=steps,
            batch_size=16,
            eval_batch_size=64,
            log_every=max(1, steps // 40),
            preview_every=steps,
            checkpoint_every=steps,
            keep=1,
        )
    )
    config.evals = dict(
        codebook=dict(every=steps),
        reconstruction=dict(every=steps, features="", reference_split="train"),
    )
    return config


def imported_tokenizer(workdir: str, steps: int, size: int) -> str:
    """The path of a VQ tokenizer in MaskGIT's format, trained here."""
    run = os.path.join(workdir, "vq")
    train.train(make_config("vq", steps, size), run)
    path, _ = export.export(run, "msgpack", os.path.join(workdir, "vq_export"))
    return path


def fit_sizes(config, path: str) -> None:
    """Gives a config the sizes of the network in a MaskGIT file (`num_groups` stays its own)."""
    sizes = maskgit.tokenizer_config(path, weights.load(path).params).model
    for name in ("filters", "channel_multipliers", "num_res_blocks", "shortcut"):
        config.model[name] = sizes[name]


def main(argv) -> None:
    del argv
    options = flags.FLAGS
    path = options.pretrained or imported_tokenizer(options.workdir, options.vq_steps, options.size)
    folders = {name: os.path.join(options.workdir, name) for name in RUNS}
    for name, folder in folders.items():
        config = make_config("fsq", options.steps, options.size)
        fit_sizes(config, path)
        if options.pretrained:
            config.model.num_groups = 32
        config.init_from = path if name == "from_vq" else ""
        log(RUNS[name])
        train.train(config, folder)
    os.makedirs(options.out, exist_ok=True)
    figure = figures.curves_figure(
        {RUNS[name]: folder for name, folder in folders.items()}, ("loss",)
    )
    figure.savefig(os.path.join(options.out, "curves.png"), dpi=100, bbox_inches="tight")
    write_json(os.path.join(options.out, "finetune.json"), record(path, folders))


def record(path: str, folders: dict[str, str]) -> dict:
    """What was taken, both curves and both results, as plain values."""
    with open(os.path.join(folders["from_vq"], "init_from.json")) as file:
        start = json.load(file)
    curves = {
        name: [[line["step"], line["loss"]] for line in read_metrics(folder, "train")]
        for name, folder in folders.items()
    }
    lowest = min(loss for _, loss in curves["scratch"])
    reached = [step for step, loss in curves["from_vq"] if loss <= lowest]
    return {
        "start": start | {"path": os.path.basename(path)},
        "losses": curves,
        "step_at_which_from_vq_is_at_the_lowest_loss_from_scratch": min(reached, default=None),
        "results": {name: load_results(folder) for name, folder in folders.items()},
        "config": load_config(folders["from_vq"]).to_dict() | {"init_from": os.path.basename(path)},
        "device": jax.devices()[0].device_kind,
    }


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Folder of the three runs.", required=True)
    flags.DEFINE_string("out", "experiments/results/finetune_fsq", "Folder of the results.")
    flags.DEFINE_string("pretrained", "", "A VQ tokenizer's file, rather than train one.")
    flags.DEFINE_integer("size", 32, "Image size in pixels.")
    flags.DEFINE_integer("vq_steps", 300, "Steps of the VQ tokenizer.")
    flags.DEFINE_integer("steps", 200, "Steps of each FSQ run.", lower_bound=2)
    cli.run(main)
