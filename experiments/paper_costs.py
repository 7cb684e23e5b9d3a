"""What the paper's own runs would take: commands, data, parameters, FLOPs, days and disk.

python -m experiments.paper_costs

Writes the section "What it would take" of docs/fidelity.md, from the commands that the experiments
print at --scale=paper, from `fsq_jax.describe`, and from the speeds in experiments/results/speed.
What describe counts is kept in experiments/results/paper_costs.json; with --seconds, as many
configs are counted as there is time for, and the next call goes on. Nothing is trained.
"""

import importlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from absl import flags

from experiments import fig3_tradeoff, fig4_maskgit256, maskgit_runs, table2_uvim
from experiments.options import Options
from fsq_jax import describe
from fsq_jax.launcher.plan import Run
from fsq_jax.reports import html
from fsq_jax.runtime import cli
from fsq_jax.runtime.files import write_json, written_whole
from fsq_jax.runtime.progress import log

FACTS = "experiments/results/paper_costs.json"
SPEED = "experiments/results/speed/h100"
DOC = "docs/fidelity.md"
MARKS = "<!-- written by experiments/paper_costs.py -->", "<!-- end -->"
GPUS = 8
ENCODER = "L_16-i21k-300ep-lr_0.001-aug_strong1-wd_0.1-do_0.0-sd_0.0.npz"
# Arguments of a config that say where something is, and change nothing that is counted.
PATHS = ("tokenizer", "base", "data_dir", "reference", "encoder")
STEPS = {  # the measured step whose rate of arithmetic a stage's is taken to have
    "maskgit_tokenizer": "tokenizer_step.jsonl",
    "maskgit_transformer": "transformer_step.jsonl",
    "uvim_base": "uvim_base_step.jsonl",
    "uvim_lm": "uvim_lm_step.jsonl",
}
# Name, bytes, SHA-256 (TFDS's own list, except where another is named), what needs it.
FILES = (
    (
        "ILSVRC2012_img_train.tar",
        147_897_477_120,
        "b08200a27a8e34218a0e58fde36b0fe8f73bc377f4acea2d91602057c3ca45bb",
        "all but depth, panoptic",
    ),
    (
        "ILSVRC2012_img_val.tar",
        6_744_924_160,
        "c7e06a6c0baccf06d8dbeb6577d71efff84673a5dbdd50633ab44f8ea0456ae0",
        "all but depth, panoptic",
    ),
    (
        "nyudepthv2.tar.gz",
        34_276_493_134,
        "063b5762eeb3041614bf40722ea5cf805cb8ca052e56f3d1c63cfd229e7ff7b3",
        "depth",
    ),
    (
        "train2017.zip",
        19_336_861_798,
        "69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929",
        "panoptic",
    ),
    (
        "val2017.zip",
        815_585_330,
        "4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05",
        "panoptic",
    ),
    (
        "panoptic_annotations_trainval2017.zip",
        860_725_834,
        "c05f76d2129b6b561eb70efe16e7006df62f73fb92889132d373b9d90e31a370",
        "panoptic",
    ),
    (
        "VIRTUAL_imagenet256_labeled.npz, VIRTUAL_imagenet128_labeled.npz (ADM)",
        0,
        "not known here",
        "FID of Figures 3 and 4",
    ),
    (
        "weights-inception-2015-12-05-6726825d.pth",
        0,
        "begins with 6726825d (in its name)",
        "FID and its relatives",
    ),
    (
        "a ResNet-50 of ImageNet in torchvision's names, such as resnet50-0676ba61.pth",
        0,
        "begins with 0676ba61 (in its name)",
        "the tokenizers' perceptual loss",
    ),
    (f"{ENCODER} (AugReg, gs://vit_models/augreg)", 0, "not known here", "Table 2, stage II"),
)


@dataclass(frozen=True)
class Row:
    """A row of the paper: its runs in their order."""

    name: str
    runs: tuple[Run, ...]


def rows() -> list[Row]:
    """The rows of Table 2 and Figure 4, and the points of Figure 3."""
    once = Options(
        "paper", "runs/paper", seeds=1, data_dir="DATA", encoder=ENCODER, adm_references="ADM"
    )
    thrice = Options(**(once.__dict__ | {"seeds": 3}))
    named = [
        *((f"Figure 4, {_codebook(r)}", r) for r in fig4_maskgit256.runs(once)),
        *((f"Table 2, {r.facts['task']}, {_variant(r)}", r) for r in table2_uvim.runs(thrice)),
        *((f"Figure 3, {_codebook(r)}", r) for r in fig3_tradeoff.runs(once)),
    ]
    made = {}
    for name, run in named:
        made.setdefault(name, []).append(run)
    return [Row(name, tuple(runs)) for name, runs in made.items()]


def _codebook(run: Run) -> str:
    return maskgit_runs.codebook_name(run.facts)


def _variant(run: Run) -> str:
    return run.facts["variant"].replace("_", " ")


def config_of(run: Run) -> str:
    """ "FILE:ARGUMENTS" of the config that a run trains, without paths; "" if it trains nothing."""
    for _, command in run.commands:
        for argument in command:
            if argument.startswith("--config=configs/"):
                file, _, arguments = argument.removeprefix("--config=configs/").partition(".py:")
                kept = [a for a in arguments.split(",") if a.partition("=")[0] not in PATHS]
                return f"{file}:{','.join(kept)}"
    return ""


def count(config: str) -> dict:
    """What `fsq_jax.describe` says of a config."""
    file, _, arguments = config.partition(":")
    facts = describe.describe(importlib.import_module(f"configs.{file}").get_config(arguments))
    kept = (
        "parameters",
        "weight_bytes",
        "optimizer_bytes",
        "ema_bytes",
        "steps",
        "batch_size",
        "examples",
        "epochs",
        "tokens",
        "flops_per_step",
    )
    return {name: facts[name] for name in kept}


def rates(folder: str = SPEED) -> dict[str, float]:
    """{config file: FLOP per second of one H100, in the step that was measured}."""
    flops = {line["variant"]: line["tflop_per_step"] for line in _lines(folder, "flops.jsonl")}
    found = {}
    for file, name in STEPS.items():
        for line in _lines(folder, name):
            if line["variant"] in flops:
                found[file] = flops[line["variant"]] * 1e12 / (line["step_ms"] / 1e3)
    return found


def _lines(folder: str, name: str) -> list[dict]:
    with open(os.path.join(folder, name)) as file:
        return [json.loads(line) for line in file if line.strip()]


def table(made: Sequence[Row], facts: Mapping[str, Mapping], rate: Mapping[str, float]) -> str:
    """One line per row and stage; "not counted" where describe has not run."""
    lines = []
    for row in made:
        configs = [config for run in row.runs if (config := config_of(run))]
        for config in dict.fromkeys(configs):
            stage, times = config.partition(":")[0], configs.count(config)
            known = facts.get(config)
            if known is None:
                lines.append((row.name, stage, times, *["not counted"] * 5))
                continue
            flops = known["flops_per_step"] * known["steps"]
            seconds = flops / (GPUS * rate[stage]) if stage in rate else None
            state = sum(known[f"{n}_bytes"] for n in ("weight", "optimizer", "ema"))
            lines.append(
                (
                    row.name,
                    stage,
                    times,
                    " + ".join(f"{n:,}" for n in known["parameters"].values()),
                    f"{known['steps']:,} x {known['batch_size']}",
                    f"{flops:.2e}",
                    "not measured" if seconds is None else f"{seconds * times / 86_400:,.1f}",
                    f"{3 * state * times / 2**30:,.0f}",
                )
            )
    header = (
        "row",
        "stage",
        "runs",
        "parameters",
        "steps x batch",
        "FLOPs of a run",
        f"days on {GPUS} H100",
        "checkpoints, GiB",
    )
    return html.Table(header, lines).text()


def section(facts: Mapping[str, Mapping], rate: Mapping[str, float]) -> str:
    """The section of the document."""
    made = rows()
    files = html.Table(
        ("file", "bytes", "SHA-256", "needed for"),
        [(name, f"{size:,}" if size else "", checksum, use) for name, size, checksum, use in FILES],
    )
    text = [
        "FLOPs are those of `fsq_jax.describe`: of the program as it is written, nothing "
        f"recomputed. Days are for all runs of a line, on {GPUS} H100, at the rate of arithmetic "
        "that one H100 reached in this stage's measured step (experiments/results/speed/h100, "
        "bfloat16: "
        + ", ".join(f"{name} {r / 1e12:.0f} TFLOP/s" for name, r in rate.items())
        + f"), times {GPUS}: neither communication nor evaluation is in them. Parameters of a "
        "tokenizer are the discriminator's and its own. Checkpoints are the three that a run "
        "keeps.",
        table(made, facts, rate),
        "Data and files. Prepared as ArrayRecord the data take about as much again as what is "
        "downloaded.",
        files.text(),
        "Commands, row by row, in their order: `DATA` is where TFDS keeps its data sets, `ADM` the "
        "folder of ADM's two files. Inception's weights are found by $FSQ_JAX_INCEPTION, and "
        "the ResNet-50 is `resnet50.pth` in the current folder. `python -m experiments.launcher "
        "--experiments=fig3_tradeoff,fig4_maskgit256,table2_uvim --scale=paper` runs them all, "
        "Figure 3 with three seeds, and goes on where it was stopped.",
    ]
    for row in made:
        commands = [c for run in row.runs for _, c in run.commands]
        listed = "\n".join("python " + " ".join(command) for command in commands)
        text.append(f"{row.name}:\n\n```bash\n{listed}\n```")
    return "\n\n".join(text)


def write(path: str, text: str) -> None:
    """Puts the text between the marks of a document."""
    with open(path) as file:
        before, _, rest = file.read().partition(MARKS[0])
    after = rest.partition(MARKS[1])[2]
    with written_whole(path) as file:
        file.write(f"{before}{MARKS[0]}\n\n{text}\n\n{MARKS[1]}{after}")


def main(argv) -> None:
    del argv
    facts, begin = {}, time.monotonic()
    if os.path.exists(FACTS):
        with open(FACTS) as file:
            facts = json.load(file)
    wanted = dict.fromkeys(c for row in rows() for run in row.runs if (c := config_of(run)))
    facts = {config: facts[config] for config in wanted if config in facts}
    for config in wanted:
        if config in facts or time.monotonic() - begin > flags.FLAGS.seconds:
            continue
        facts[config] = count(config)
        log(f"{config}: {facts[config]['flops_per_step'] / 1e12:,.1f} TFLOP per step")
        write_json(FACTS, facts)
    write(DOC, section(facts, rates()))


if __name__ == "__main__":
    flags.DEFINE_float("seconds", 1e9, "When to stop counting.", lower_bound=0.0)
    cli.run(main)
