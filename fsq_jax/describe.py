"""Says what a config would cost before anyone pays for it. Nothing is trained, nothing is read.

python -m fsq_jax.describe --config=configs/maskgit_tokenizer.py:scale=paper
python -m fsq_jax.describe --config=configs/uvim_lm.py:scale=paper,task=depth
python -m fsq_jax.describe --config=configs/maskgit_transformer.py:scale=paper --gpus=8 \
    --images_per_second=1000
python -m fsq_jax.describe --config=configs/maskgit_transformer.py:scale=paper,dtype=bfloat16 \
    --memory=h100 --gpus=2 --config.fsdp=True

Parameters by module, bytes of weights and optimiser state, codes and what an image takes in them,
FLOPs of a training step, and the days that it takes at a measured speed. --memory compiles the
step, which takes minutes, and says what it needs of each device's memory at its peak: of devices
here, or of an H100, which need not be here.
"""

import json
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from absl import flags
from clu import parameter_overview

from fsq_jax.data import checks, splits
from fsq_jax.runs import costs, inputs
from fsq_jax.runtime import absent_gpus, cli
from fsq_jax.runtime.user_error import UserError

# Training images of data sets that need not be at hand; others are counted where they lie.
_NUM_RECORDS = {
    "tfds:imagenet2012": 1_281_167,
    "tfds:nyu_depth_v2": 47_584,
    "tfds:coco/2017_panoptic": 118_287,
}
MEMORY = ("", "here", "h100")
# What the one network of a stage is called.
_NETWORKS = {"maskgit_transformer": "transformer", "uvim_base": "base", "uvim_lm": "language model"}


def describe(config, gpus: int = 1, images_per_second: float = 0.0, memory: str = "") -> dict:
    """What a run of this config takes, as plain numbers.

    Args:
      config: of any stage.
      gpus: devices that the days are worked out for.
      images_per_second: measured on one of them; 0 leaves the days out.
      memory: the devices whose memory is predicted, "here" or "h100"; "" for none.

    Returns:
      parameters: {network: count}; modules: {network/module: count}; weight_bytes,
      optimizer_bytes, ema_bytes, frozen_bytes; steps, batch_size, examples (steps x batch_size);
      epochs, None where the size of the data is not known; quantizer, codebook_size, tokens of an
      image; flops_per_step; days or None; peak_bytes of each device, or None.

    Raises:
      UserError: there are no such devices to compile for.
    """
    devices = devices_of(memory, gpus)
    config = with_classes(config)
    stage, state, batch = costs.shapes_of(config)
    networks = state.params
    if config.stage in _NETWORKS:
        networks = {_NETWORKS[config.stage]: networks}
    examples = config.steps * config.batch_size
    num_records = count_records(config)
    speed = gpus * images_per_second
    return {
        "parameters": {name: _count(params) for name, params in networks.items()},
        "modules": {
            f"{name}/{module}": _count(tree)
            for name, params in networks.items()
            for module, tree in params.items()
        },
        "weight_bytes": _bytes(state.params),
        "optimizer_bytes": _bytes(state.opt_state),
        "ema_bytes": _bytes(state.ema_params),
        "frozen_bytes": _bytes(stage.frozen),
        "steps": config.steps,
        "batch_size": config.batch_size,
        "examples": examples,
        "epochs": examples / num_records if num_records else None,
        "quantizer": config.get("stage_1", config).quantizer.name,
        "codebook_size": stage.facts.codebook_size,
        "tokens": (config.data.size // stage.facts.downsampling) ** 2,
        "flops_per_step": costs.training_flops(config, batch),
        "days": examples / speed / 86_400 if speed else None,
        "peak_bytes": costs.peak_bytes(costs.compile_step(config, batch, devices))
        if devices
        else None,
    }


def devices_of(memory: str, gpus: int) -> Sequence[Any]:
    """The devices that a step is compiled for: none for ""."""
    if memory not in MEMORY:
        raise UserError(f"memory={memory!r} must be one of {MEMORY}.")
    if memory == "here":
        if gpus > jax.device_count():
            raise UserError(f"{gpus=}, but there are {jax.device_count()} devices here.")
        return jax.devices()[:gpus]
    return absent_gpus.h100(gpus) if memory else ()


def count_records(config) -> int:
    """How many records a config trains on; 0 where that is not known."""
    total, where = _NUM_RECORDS.get(config.data.source), f"describe {config.data.source}"
    if total is None:
        return len(_dataset(config) or ())
    first, last = splits.span(config.data.train_split, total, where)
    return last - first


def arrays(config) -> str:
    """A table of every trained array of a config: name, shape, dtype, size."""
    _, state, _ = costs.shapes_of(with_classes(config))
    return parameter_overview.get_parameter_overview(state.params, include_stats=False)


def with_classes(config):
    """A copy that has a number of classes, and of segments' classes: the data's own, or ImageNet's
    and COCO's where it isn't here."""
    config = config.copy_and_resolve_references()
    if config.get("num_classes") == 0:
        dataset = _dataset(config)
        config.num_classes = dataset.num_classes if dataset else 1000
    if config.get("task", {}).get("num_semantics") == 0:
        dataset = _dataset(config)
        config.task.num_semantics = checks.num_semantics(dataset) if dataset else 134
    return config


def _dataset(config):
    """The training data, or None where it isn't here."""
    try:
        return inputs.open_split(config.data, config.data.train_split)
    except (UserError, OSError):
        return None


def _count(tree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def _bytes(tree) -> int:
    return sum(leaf.size * np.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(tree))


def text(facts: dict) -> str:
    """The facts as lines for people."""
    giga = 1 / 2**30
    lines = []
    for name, count in facts["parameters"].items():
        lines.append(f"{name:>16}: {count:,} parameters")
        modules = {m: n for m, n in facts["modules"].items() if m.startswith(f"{name}/")}
        lines += [f"{n:>30,} {m.partition('/')[2]}" for m, n in modules.items()]
    state = sum(facts[f"{name}_bytes"] for name in ("weight", "optimizer", "ema", "frozen"))
    lines.append(
        f"{'state':>16}: {state * giga:.2f} GiB (weights {facts['weight_bytes'] * giga:.2f}, "
        f"optimiser {facts['optimizer_bytes'] * giga:.2f}, average {facts['ema_bytes'] * giga:.2f}"
        f", frozen {facts['frozen_bytes'] * giga:.2f}); activations come on top"
    )
    epochs = f"{facts['epochs']:.1f}" if facts["epochs"] else "an unknown number of"
    lines.append(
        f"{'training':>16}: {facts['steps']:,} steps of {facts['batch_size']} = "
        f"{facts['examples']:,} examples, {epochs} epochs"
    )
    bits = facts["tokens"] * math.log2(facts["codebook_size"])
    lines.append(
        f"{'codes':>16}: {facts['codebook_size']:,} of {facts['quantizer']}; "
        f"{facts['tokens']} tokens an image, {math.ceil(bits / 8)} bytes"
    )
    lines.append(
        f"{'a step':>16}: {facts['flops_per_step'] / 1e12:.2f} TFLOP, "
        f"{facts['flops_per_step'] / facts['batch_size'] / 1e9:.1f} GFLOP an image"
    )
    if facts["peak_bytes"] is not None:
        lines.append(f"{'memory':>16}: {facts['peak_bytes'] * giga:.2f} GiB of each device at most")
    if facts["days"] is not None:
        lines.append(f"{'time':>16}: {facts['days']:.2f} days")
    return "\n".join(lines)


def main(argv) -> None:
    del argv
    config = flags.FLAGS.config
    if flags.FLAGS.arrays:
        print(arrays(config))
        return
    options = flags.FLAGS
    facts = describe(config, options.gpus, options.images_per_second, options.memory)
    if flags.FLAGS.json:
        print(json.dumps(facts))
        return
    print(text(facts))


if __name__ == "__main__":
    cli.define_config_flag()
    flags.DEFINE_bool("json", False, "Print JSON.")
    flags.DEFINE_bool("arrays", False, "Print every array's name, shape and size, nothing else.")
    flags.DEFINE_integer(
        "gpus", 1, "Devices that days and memory are worked out for.", lower_bound=1
    )
    flags.DEFINE_enum("memory", "", MEMORY, "Devices whose memory is predicted; takes minutes.")
    flags.DEFINE_float("images_per_second", 0.0, "Speed measured on one device; gives the days.")
    flags.mark_flags_as_required(["config"])
    cli.run(main)
