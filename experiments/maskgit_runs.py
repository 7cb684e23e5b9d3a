"""The runs that the experiments on MaskGIT are made of: tokenizers, and transformers on them.

Their names say all that tells them apart, so that two experiments that ask for one run share it.
"""

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence

from configs import arguments as config_arguments
from experiments.options import Options
from fsq_jax.launcher.plan import Run
from fsq_jax.quantizers import fsq

# Bench: Fashion-MNIST at 32 px, 8 x 8 tokens, one network for all sizes and both quantizers. Half
# of the width that MaskGIT has per code channel (512 to 256) is kept: 128 to 64.
TOKENIZER = {
    "model.filters": 64,
    "model.num_groups": 16,
    "discriminator.max_width": 64,
    "steps": 3_000,
    # Over 100 steps. Over the 1,000 of MaskGIT's 500,000 every tokenizer was worse, and seeds less
    # alike (docs/results.md).
    "ema_decay": 0.99,
    "batch_size": 128,
    "eval_batch_size": 125,
    "loss.adversarial_start": 600,
    "optim.schedule": "cosine",
    "data.workers": 0,
    "data.cache": False,
    "log_every": 100,
    "preview_every": 3_000,
    "checkpoint_every": 1_000,
    "keep": 1,
    "evals.codebook.every": 3_000,
    "evals.reconstruction.every": 3_000,
}
VQ = {"quantizer.channels": 64}
CODEWORDS = ("vq", "vq_ema", "simvq")  # quantizers whose codebook is a list of vectors
TRANSFORMER = {
    "model.width": 256,
    "model.depth": 6,
    "model.num_heads": 8,
    "model.mlp_dim": 1_024,
    "steps": 4_000,
    "batch_size": 128,
    "eval_batch_size": 125,
    "optim.warmup_steps": 200,
    "data.workers": 0,
    "data.cache": False,
    "log_every": 100,
    "preview_every": 4_000,
    "checkpoint_every": 1_000,
    "keep": 1,
    "evals.compression.every": 4_000,
    "evals.generation.every": 4_000,
}
DATA = "fashion_mnist"
WEIGHTS = "export/model.safetensors"
# Images a second of one H100 (experiments/results/speed/h100), at 256 px; a quarter of the pixels
# takes a quarter of the time.
PAPER_SPEED = {"tokenizer": 289.0, "transformer": 1_167.0}
PAPER_IMAGES = {
    128: {"tokenizer": 500_000 * 256, "transformer": 1_000_000 * 256},
    256: {"tokenizer": 1_000_000 * 512, "transformer": 2_500_000 * 256},
}


def data_run(options: Options) -> list[Run]:
    """What brings Fashion-MNIST into arrays that all runs map to memory; none of other scales."""
    if options.scale != "bench":
        return []
    more = (f"--data_dir={options.data_dir}", "--workers=8")
    return [prepared(options, DATA, "tfds:fashion_mnist", 32, ("train", "test"), more)]


def prepared(
    options: Options,
    name: str,
    source: str,
    size: int,
    splits: Sequence[str],
    more: Sequence[str] = (),
) -> Run:
    """What brings splits of a source into arrays; other runs read them once the last is there."""
    out = os.path.join(options.workdir, name)
    common = ("-m", "fsq_jax.prepare", f"--data={source}", f"--size={size}", f"--out={out}")
    files = [f"{split.partition('[')[0]}/meta.json" for split in splits]
    commands = tuple(
        (file, (*common, f"--splits={split}", *more))
        for file, split in zip(files, splits, strict=True)
    )
    return Run(name, commands, weights=files[-1], carried=False)


def codebook(quantizer: str, bits: int, levels: Sequence[int] = (), stages: int = 1) -> dict:
    """The facts of a codebook of about 2**bits codes.

    Args:
      quantizer: its name in `fsq_jax.quantizers`.
      bits: the size.
      levels: of the quantizers that have levels; FSQ's are the paper's by default.
      stages: of a residual quantizer, whose every stage has these levels.
    """
    if quantizer == "fsq":
        levels = levels or fsq.LEVELS[2**bits]
    if not levels:
        return {"quantizer": quantizer, "codebook_size": 2**bits, "size": 2**bits, "bits": bits}
    sizes = {"levels": tuple(levels)} | ({"stages": stages} if stages > 1 else {})
    return {"quantizer": quantizer, **sizes, "size": math.prod(levels) ** stages, "bits": bits}


def codebook_name(facts: Mapping) -> str:
    """ "fsq_8-5-5-5", "residual_fsq_8-8x2", "vq_1024"."""
    if "levels" not in facts:
        return f"{facts['quantizer']}_{facts['codebook_size']}"
    times = f"x{facts['stages']}" if "stages" in facts else ""
    return f"{facts['quantizer']}_{'-'.join(map(str, facts['levels']))}{times}"


def arguments(options: Options, facts: Mapping, pixels: int) -> str:
    """The configs' arguments of a codebook and of the data; the size of the paper's images."""
    names = ("quantizer", "levels", "stages", "codebook_size")
    quantizer = config_arguments.text({name: facts[name] for name in names if name in facts})
    folder = f",data_dir={options.data_dir}" if options.data_dir else ""
    data = {
        "paper": f"size={pixels}{folder}{_reference(options, pixels)}",
        "bench": f"data=arrays:{os.path.join(options.workdir, DATA)}",
        "smoke": "data=scenes",
    }
    return f"scale={options.scale},{quantizer},{data[options.scale]}"


def _reference(options: Options, pixels: int) -> str:
    """The configs' argument that names ADM's file, where there is one."""
    file = f"VIRTUAL_imagenet{pixels}_labeled.npz"
    folder = options.adm_references
    return f",reference={os.path.join(folder, file)}" if folder else ""


def tokenizer(
    options: Options,
    facts: Mapping,
    seed: int,
    changes: Mapping = (),
    suffix: str = "",
    pixels: int = 128,
) -> Run:
    """A tokenizer with the codebook of `facts`.

    Args:
      options: of the experiment.
      facts: as `codebook` gives them, and more that the entry is to say.
      seed: of the run.
      changes: {dotted key: value} of its config, besides the scale's.
      suffix: of its name, which says what the changes are.
      pixels: 128 or 256, of scale=paper; the other scales have one size.
    """
    name = f"tokenizer_{codebook_name(facts)}{suffix}_s{seed}"
    path = os.path.join(options.workdir, name)
    own = {"seed": seed} | dict(changes)
    if options.scale == "bench":
        own = TOKENIZER | (VQ if facts["quantizer"] in CODEWORDS else {}) | own
    config = f"configs/maskgit_tokenizer.py:{arguments(options, facts, pixels)}"
    train = train_command(options, config, path, own)
    return Run(
        name,
        (("results.json", train), (WEIGHTS, export_command(path))),
        facts | {"stage": "tokenizer", "seed": seed, "data": data_name(options)},
        needs=tuple(run.name for run in data_run(options)),
        weights=WEIGHTS,
        rank=10 + seed,
        gpu_hours=_hours(options, "tokenizer", facts, pixels),
        places=_places(options, "tokenizer", facts),
    )


def transformer(options: Options, stage_1: Run, seed: int, pixels: int = 128) -> Run:
    """A masked transformer on a tokenizer's tokens; see `tokenizer`."""
    name = f"transformer_on_{stage_1.name}_s{seed}"
    path = os.path.join(options.workdir, name)
    weights = os.path.join(options.workdir, stage_1.name, WEIGHTS)
    own = {"seed": seed} | (TRANSFORMER if options.scale == "bench" else {})
    given = arguments(options, stage_1.facts, pixels)
    config = f"configs/maskgit_transformer.py:{given},tokenizer={weights}"
    train = train_command(options, config, path, own)
    return Run(
        name,
        (("results.json", train), (WEIGHTS, export_command(path))),
        stage_1.facts | {"stage": "transformer", "seed": seed, "stage_1": stage_1.name},
        needs=(stage_1.name, *stage_1.needs),
        weights=WEIGHTS,
        rank=20 + seed,
        gpu_hours=_hours(options, "transformer", stage_1.facts, pixels),
        places=_places(options, "transformer", stage_1.facts),
    )


def on_data(run: Run, data: Sequence[Run], name: str) -> Run:
    """A run that reads the data of other runs than `data_run`'s, and says so."""
    return dataclasses.replace(
        run, needs=tuple(other.name for other in data), facts=dict(run.facts) | {"data": name}
    )


def data_name(options: Options) -> str:
    """What all runs of a scale are trained on."""
    names = {"paper": "tfds:imagenet2012", "bench": "tfds:fashion_mnist", "smoke": "scenes"}
    return names[options.scale]


def train_command(options: Options, config: str, path: str, own: Mapping) -> tuple[str, ...]:
    """What trains a config in `path`, with {dotted key: value} in the place of its own."""
    stage = os.path.basename(config.partition(".py:")[0])
    changes = [f"--config.{name}={value}" for name, value in own.items()]
    changes += options.changes_of(stage)
    return ("-m", "fsq_jax.train", f"--config={config}", f"--workdir={path}", *changes)


def export_command(path: str) -> tuple[str, ...]:
    """What leaves a run's WEIGHTS."""
    out = os.path.join(path, os.path.dirname(WEIGHTS))
    return ("-m", "fsq_jax.export", f"--workdir={path}", "--format=safetensors", f"--out={out}")


def _places(options: Options, stage: str, facts: Mapping) -> int:
    """Two of a GPU's for about 2^16 logits or distances of every token, which fill gigabytes."""
    scores = stage == "transformer" or facts["quantizer"] in CODEWORDS
    return 2 if options.scale == "bench" and scores and facts["bits"] >= 16 else 1


def _hours(options: Options, stage: str, facts: Mapping, pixels: int) -> float:
    """Hours of an H100: the paper's by measured speeds; of bench, a guess that sorts runs."""
    if options.scale == "paper":
        speed = PAPER_SPEED[stage] * (256 / pixels) ** 2
        return PAPER_IMAGES[pixels][stage] / speed / 3600
    if options.scale == "bench":
        return 0.01 * (1 + (facts["quantizer"] in CODEWORDS) * facts["size"] / 2**14)
    return 0.0
