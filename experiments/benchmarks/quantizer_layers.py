"""Times each quantizer of the registry, forward and backward, beside vector-quantize-pytorch's.

python -m experiments.benchmarks.quantizer_layers --seconds=540 --out=quantizer_layers.json

A call is one step of training: codes, indices and losses of 256 x 16 x 16 float32 tokens, the
gradients of tokens and parameters for a gradient of the codes, and the new state of a codebook. The
file holds {"NAME_BITS": {"ours", "torch", "torch_compiled" (ms of a call), "ratio" (the faster of
torch's to ours), "ours_mib", "torch_mib" (the most memory), "device", "settings"}}; what failed, or
did not fit, is a text in place of a number. Names are measured in turn until --seconds are over,
those that the file lacks first; each side runs in a process of its own. A quantizer that
vector-quantize-pytorch lacks is left out.
"""

import gc
import json
import os
import time

import jax
from absl import flags

from experiments.benchmarks import apart
from fsq_jax import LEVELS, quantizers
from fsq_jax.runs import costs
from fsq_jax.runtime import cli, compiler, outputs
from fsq_jax.runtime.files import write_json
from fsq_jax.runtime.user_error import UserError, did_you_mean

_LEAST = 30  # seconds; with fewer left no program is started
_MOST = 240  # seconds of a program
# Levels of FSQ, and of each of the two stages or groups.
_WHOLE = {bits: LEVELS.get(2**bits, (8,) * (bits // 3)) for bits in (4, 10, 14, 16, 18)}
_HALF = {4: (4,), 10: (8, 4), 14: (8, 4, 4), 16: (8, 8, 4), 18: (8, 8, 8)}
WITH_CHANNELS = ("vq", "vq_ema", "simvq")
_MEANS = dict(
    name="vq_ema",
    momentum=0.8,
    commitment_weight=1.0,
    standardize=False,
    unit_words=False,
    split_threshold=0.0,
)

# The options of ours, but for levels, size and channels; torch's are in quantizer_layers_torch.py.
OURS = {
    "fsq": dict(name="fsq"),
    "residual_fsq": dict(name="residual_fsq", num_stages=2),
    "grouped_fsq": dict(name="grouped_fsq", num_groups=2),
    "lfq": dict(name="lfq"),
    "bsq": dict(name="bsq"),
    "vq": dict(name="vq", commitment_weight=1.0, entropy_weight=0.0),
    "vq_ema": _MEANS,
    "vq_cosine": _MEANS | dict(normalize=True, unit_words=True),
    "vq_projected": _MEANS | dict(codebook_channels=8),
    "vq_rotation": _MEANS | dict(gradient="rotation"),
    "vq_reseed": _MEANS | dict(reseed_threshold=2.0),
    "simvq": dict(name="simvq", bias=False),
}


def arguments(name: str, bits: int) -> dict:
    """What makes a quantizer one of about 2**bits codes, on either side."""
    if "fsq" in name:
        return dict(levels=list(_WHOLE[bits] if name == "fsq" else _HALF[bits]))
    return dict(codebook_size=2**bits)


def make(name: str, bits: int, channels: int):
    """Our quantizer; channels: of a VQ's tokens."""
    width = dict(channels=channels) if OURS[name]["name"] in WITH_CHANNELS else {}
    return quantizers.make(**OURS[name], **arguments(name, bits), **width)


def shape_of(tokens: int, channels: int) -> tuple[int, ...]:
    """Of tokens: 256 of each image."""
    per_image = min(256, tokens)
    return tokens // per_image, per_image, channels


def step_of(module):
    """(state, parameters, z, gradient of the codes, key) -> (state, gradients, codes, indices)."""

    def step(state, params, z, weight, key):
        def loss(params, z):
            result, after = module.apply(
                {**state, "params": params},
                z,
                train=True,
                mutable=list(state),
                rngs={"codebook": key},
            )
            return (result.codes * weight).sum() + result.loss, (after, result)

        gradients, (after, result) = jax.grad(loss, argnums=(0, 1), has_aux=True)(params, z)
        return after, gradients, result.codes, result.indices, result.loss

    return step


def inputs(module, shape: tuple[int, ...]):
    """What `step_of` takes, with random tokens."""
    z, weight = (jax.random.normal(jax.random.key(i), shape) for i in (0, 1))
    state = dict(jax.jit(module.init)(jax.random.key(2), z[:1]))
    return state, state.pop("params", {}), z, weight, jax.random.key(3)


def time_calls(call, wait, seconds: float = 0.5) -> float:
    """Milliseconds of a call, over as many as fill some time; `wait` returns once all are done."""
    call(), wait()
    begin = time.perf_counter()
    call(), wait()
    count = max(3, min(100, int(seconds / (time.perf_counter() - begin))))
    begin = time.perf_counter()
    for _ in range(count):
        call()
    wait()
    return 1e3 * (time.perf_counter() - begin) / count


def time_ours(name: str, bits: int, tokens: int, channels: int) -> dict:
    """{"ours": ms, "ours_mib"}."""
    module = make(name, bits, channels)
    state, *rest = inputs(module, shape_of(tokens, module.channels))
    options = compiler.compiler_options()  # those of training
    step = jax.jit(step_of(module), donate_argnums=0, compiler_options=options)
    compiled = step.lower(state, *rest).compile()
    held = [state, None]

    def call():
        held[0], *held[1:] = compiled(held[0], *rest)

    milliseconds = time_calls(call, lambda: jax.block_until_ready(held))
    return {"ours": milliseconds, "ours_mib": costs.peak_bytes(compiled) / 2**20}


def time_torch(name: str, bits: int, tokens: int, channels: int) -> dict:
    """{"torch": ms, "torch_mib", "torch_compiled": ms}, or what went wrong in place of a number."""
    from experiments.benchmarks import quantizer_layers_torch as theirs

    values, options = {}, arguments(name, bits)
    channels = make(name, bits, channels).channels
    if OURS[name]["name"] in WITH_CHANNELS:
        options["dim"] = channels

    def timed(key: str, compiled: bool) -> dict:
        layer = theirs.Layer(name, options, shape_of(tokens, channels), compiled)
        milliseconds = time_calls(layer, layer.wait)
        return {key: milliseconds, f"{key}_mib": layer.peak_mib()}

    for key, compiled in (("torch", False), ("torch_compiled", True)):
        gc.collect()
        found = attempt(lambda key=key, compiled=compiled: timed(key, compiled))
        values |= {key: found["error"]} if "error" in found else found
    return values


def attempt(measure) -> dict:
    """What `measure` gives, or {"error"}: what doesn't fit is a result."""
    try:
        return measure()
    except Exception as error:
        text = str(error)
        fits = "out of memory" not in text.lower() and "RESOURCE_EXHAUSTED" not in text
        return {"error": text.splitlines()[0][:200] if fits and text else "out of memory"}


def measure_sizes(options) -> dict:
    """{bits: what one side gives, or {"error"}}; none begun after so many seconds."""
    measure = {"ours": time_ours, "torch": time_torch}[options.side]
    results, end = {}, time.monotonic() + options.limit
    for bits in options.bits:
        if time.monotonic() > end:
            break
        results[bits] = attempt(
            lambda bits=bits: measure(options.one, int(bits), options.tokens, options.channels)
        )
    return results


def row(ours: dict, torch: dict) -> dict:
    """The numbers of a row of the file."""
    values = {"ours": ours.get("ours", ours.get("error"))}
    values |= {key: torch.get(key, torch.get("error")) for key in ("torch", "torch_compiled")}
    theirs = [v for key, v in values.items() if key != "ours" and isinstance(v, float)]
    if theirs and isinstance(values["ours"], float):
        values["ratio"] = min(theirs) / values["ours"]
    values |= {key: side[key] for side in (ours, torch) for key in side if key.endswith("_mib")}
    return {key: round(v, 3) if isinstance(v, float) else v for key, v in values.items()}


def measure(name: str, options, end: float) -> dict:
    """{bits: row} of one quantizer; {"error"} where a side fails or time is up."""
    sides = []
    for side in ("ours", "torch"):
        left = min(_MOST, end - time.monotonic())
        if left < _LEAST:
            return {"error": "no time left"}
        given = {"one": name, "side": side, "bits": ",".join(options.bits), "limit": left / 2}
        given |= {"tokens": options.tokens, "channels": options.channels}
        flags_given = [f"--{flag}={value}" for flag, value in given.items()]
        sides.append(apart.run("quantizer_layers", flags_given, left))
        if "error" in sides[-1]:
            return {"error": f"{side}: {sides[-1]['error']}"}
    ours, torch = (side["sizes"] for side in sides)
    settings = f"{options.tokens} float32 tokens; ours {OURS[name]}, {options.channels} channels"
    common = {"device": sides[0]["device"], "settings": settings}
    return {bits: row(ours[bits], torch[bits]) | common for bits in ours if bits in torch}


def main(argv) -> None:
    del argv
    options, end = flags.FLAGS, time.monotonic() + flags.FLAGS.seconds
    if options.one:
        sizes = measure_sizes(options)
        device = jax.devices()[0].device_kind if options.side == "ours" else ""
        print(json.dumps({"sizes": sizes, "device": device}))
        return
    names = options.names or list(OURS)
    for name in names:
        if name not in OURS:
            raise UserError(f"There is no quantizer {name!r}{did_you_mean(name, OURS)}")
    outputs.check_file(options.out)
    table = {}
    if os.path.exists(options.out):
        with open(options.out) as file:
            table = json.load(file)
    keys = {name: [f"{name}_{bits}" for bits in options.bits] for name in names}
    for name in sorted(names, key=lambda name: all(key in table for key in keys[name])):
        results = measure(name, options, end)
        print(name, results, flush=True)
        if "error" not in results:
            table |= {f"{name}_{bits}": values for bits, values in results.items()}
            write_json(options.out, table)
    if missing := [key for some in keys.values() for key in some if key not in table]:
        raise UserError(f"Not in {options.out}: {', '.join(missing)}.")


if __name__ == "__main__":
    flags.DEFINE_string("out", None, "File of the results.")
    flags.DEFINE_integer("seconds", 540, "Time for all of them.", lower_bound=1)
    flags.DEFINE_list("names", [], "Quantizers to measure; all by default.")
    flags.DEFINE_list("bits", ["10", "14", "16", "18"], "Codebooks, as powers of two.")
    flags.DEFINE_integer("tokens", 256 * 16 * 16, "Tokens of a call.", lower_bound=1)
    flags.DEFINE_integer("channels", 256, "Of the tokens of VQs.", lower_bound=1)
    flags.DEFINE_string("one", "", "Measure one side of this quantizer here.")
    flags.DEFINE_enum("side", "ours", ["ours", "torch"], "Which.")
    flags.DEFINE_float("limit", 1e9, "Seconds after which no other size is begun.")
    cli.run(main)
