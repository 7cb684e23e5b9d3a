"""Times MaskGIT's stage II train step on random data, one process a variant.

    python -m experiments.benchmarks.transformer --attention cudnn xla --attention-dropout 0 0.1 \\
        --remat none dots --out transformer.jsonl
    python -m experiments.benchmarks.transformer --small        # seconds, on a CPU

A step is masks, forward, loss, backward, AdamW (0.9, 0.96) and the moving average, with float32
master weights. Every combination of the values given is run. A variant that fails is recorded
with its error and the next one runs. A variant has a process of its own because the peak of the
memory in use is counted per process. Times are medians over blocks of steps.

FLOPs of an image, forward: 2 L (depth (4 D^2 + 2 D F) + D^2 + D K) + 4 depth L^2 D with L tokens
(padding not counted), width D, MLP width F and K codes; forward and backward are three times that.
What rematerialisation computes again does not count.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import optax

from fsq_jax import losses, optim
from fsq_jax.models.maskgit_transformer import MaskedTransformer
from fsq_jax.sampling import masked

SIZES = {
    "paper": dict(width=768, depth=24, mlp_dim=3072, tokens=256, codes=1000, classes=1000),
    "small": dict(width=32, depth=2, mlp_dim=64, tokens=16, codes=40, classes=10),
}
AXES = {  # flag: type, default, default with --small
    "attention": (str, ["auto"], ["xla"]),
    "attention_dropout": (float, [0.0], [0.0, 0.1]),
    "dropout": (float, [0.1], [0.1]),
    "remat": (str, ["none"], ["none", "dots"]),
    "batch": (int, [256], [4]),
    "heads": (int, [16], [4]),
    "dtype": (str, ["bfloat16"], ["bfloat16"]),
}


def flops_per_image(size: dict) -> float:
    """FLOPs of one image's forward and backward pass, as in the module's docstring."""
    width, depth, length = size["width"], size["depth"], size["tokens"] + 1
    layer = 4 * width**2 + 2 * width * size["mlp_dim"]
    head = width**2 + width * size["codes"]
    return 3.0 * (2 * length * (depth * layer + head) + 4 * depth * length**2 * width)


def make_step(variant: dict, size: dict):
    """(init(key) -> state, update(state, tokens, labels, key) -> (state, loss)) of a variant."""
    codes, classes, length = size["codes"], size["classes"], size["tokens"]
    mask_id = codes + classes
    model = MaskedTransformer(
        vocab_size=mask_id + 1,
        num_positions=length + 1,
        width=size["width"],
        depth=size["depth"],
        mlp_dim=size["mlp_dim"],
        num_heads=variant["heads"],
        dropout=variant["dropout"],
        attention_dropout=variant["attention_dropout"],
        attention=variant["attention"],
        remat=variant["remat"],
        num_logits=codes,
        dtype=jnp.dtype(variant["dtype"]),
    )
    optimizer = optim.make_optimizer(
        1e-4, total_steps=1_000_000, warmup_steps=5000, b1=0.9, b2=0.96, weight_decay=4.5e-2
    )

    def init(key):
        params = model.init(key, jnp.zeros((1, length + 1), jnp.int32))["params"]
        return params, optimizer.init(params), jax.tree.map(jnp.copy, params), jnp.zeros((), int)

    def mean_loss(params, tokens_BL, labels_B, key):
        key_mask, key_dropout = jax.random.split(key)
        mask_BL = masked.random_mask(key_mask, *tokens_BL.shape)
        class_B1 = labels_B[:, None] + codes
        inputs_BL = jnp.concatenate([class_B1, jnp.where(mask_BL, mask_id, tokens_BL)], axis=1)
        logits_BLV = model.apply(
            {"params": params}, inputs_BL, train=True, rngs={"dropout": key_dropout}
        )[:, 1:]
        return losses.masked_cross_entropy(logits_BLV, tokens_BL, mask_BL, 0.1).mean()

    def update(state, tokens_BL, labels_B, key):
        params, opt_state, average, step = state
        key = jax.random.fold_in(key, step)
        loss, grads = jax.value_and_grad(mean_loss)(params, tokens_BL, labels_B, key)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        average = optim.moving_average(average, params, 0.999)
        return (params, opt_state, average, step + 1), loss

    return init, update


def measure(variant: dict, size: dict, blocks: int, block_steps: int) -> dict:
    """What a variant reaches: milliseconds a step, images/s, TFLOP/s, GiB, compile seconds."""
    init, update = make_step(variant, size)
    key = jax.random.key(0)
    state = jax.jit(init)(key)
    batch = variant["batch"]
    tokens_BL = jax.random.randint(key, (batch, size["tokens"]), 0, size["codes"])
    labels_B = jax.random.randint(key, (batch,), 0, size["classes"])
    inputs = (tokens_BL, labels_B, key)
    started = time.perf_counter()
    compiled = jax.jit(update, donate_argnums=0).lower(state, *inputs).compile()
    compile_s = time.perf_counter() - started
    for _ in range(3):
        state, loss = compiled(state, *inputs)
    first_loss = float(loss)
    seconds = []
    for _ in range(blocks):
        started = time.perf_counter()
        for _ in range(block_steps):
            state, loss = compiled(state, *inputs)
        loss.block_until_ready()
        seconds.append((time.perf_counter() - started) / block_steps)
    step_s = statistics.median(seconds)
    memory = jax.local_devices()[0].memory_stats() or {}
    peak = memory.get("peak_bytes_in_use")
    return {
        "step_ms": 1e3 * step_s,
        "step_ms_min": 1e3 * min(seconds),
        "images_per_s": batch / step_s,
        "tflops": flops_per_image(size) * batch / step_s / 1e12,
        "peak_gib": None if peak is None else peak / 2**30,
        "temporary_gib": compiled.memory_analysis().temp_size_in_bytes / 2**30,
        "compile_s": compile_s,
        "loss": [first_loss, float(loss)],
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }


def run_apart(variant: dict, arguments) -> dict:
    """`measure` in a process of its own; {"error": ...} where it fails or takes too long."""
    command = [
        sys.executable, "-m", "experiments.benchmarks.transformer", "--one", json.dumps(variant),
        "--blocks", str(arguments.blocks), "--block-steps", str(arguments.block_steps),
    ] + ["--small"] * arguments.small
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=arguments.timeout)
    except subprocess.TimeoutExpired:
        return {"error": f"took more than {arguments.timeout} s"}
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if "Error" in line or "RESOURCE_EXHAUSTED" in line]
        return {"error": (errors or lines or [f"exit status {done.returncode}"])[-1][:300]}
    return json.loads(done.stdout.splitlines()[-1])


def table_row(variant: dict, result: dict) -> str:
    """One line of the printed table."""
    names = " ".join(f"{variant[name]!s:>{max(8, len(name))}}" for name in AXES)
    if "error" in result:
        return f"{names}  {result['error']}"
    peak = "-" if result["peak_gib"] is None else f"{result['peak_gib']:.1f}"
    return (
        f"{names} {result['step_ms']:9.2f} {result['images_per_s']:9.0f} "
        f"{result['tflops']:8.2f} {peak:>6} {result['compile_s']:9.1f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, (kind, *_) in AXES.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, nargs="+")
    parser.add_argument("--small", action="store_true", help="a tiny model, for a CPU")
    parser.add_argument("--out", help="JSON lines are appended here")
    parser.add_argument("--blocks", type=int, default=5, help="blocks that are timed")
    parser.add_argument("--block-steps", type=int, default=4, help="steps in a block")
    parser.add_argument("--timeout", type=float, default=300, help="seconds a variant may take")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        size = SIZES["small" if arguments.small else "paper"]
        result = measure(json.loads(arguments.one), size, arguments.blocks, arguments.block_steps)
        print(json.dumps(result))
        return
    values = [getattr(arguments, name) or AXES[name][1 + arguments.small] for name in AXES]
    names = " ".join(f"{name:>{max(8, len(name))}}" for name in AXES)
    print(f"{names} {'step ms':>9} {'images/s':>9} {'TFLOP/s':>8} {'GiB':>6} {'compile s':>9}")
    for combination in itertools.product(*values):
        variant = dict(zip(AXES, combination, strict=True))
        result = run_apart(variant, arguments)
        print(table_row(variant, result), flush=True)
        if arguments.out:
            with open(arguments.out, "a") as file:
                file.write(json.dumps({"variant": variant, **result}) + "\n")


if __name__ == "__main__":
    main()
