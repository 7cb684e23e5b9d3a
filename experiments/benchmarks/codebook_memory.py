"""What memory a look-up in a large codebook takes, whole and in blocks of codes, as compiled.

python -m experiments.benchmarks.codebook_memory --out=codebook_memory.json

For 8,192 tokens and 2^18 codes of 64 and of 256 channels: "forward" gives codes and indices alone,
"step" is one of training, with the entropy loss of `vq`. The file holds
{"QUANTIZER_CHANNELS_CALL_DEVICE": {"in_blocks_mib", "whole_mib" (the most memory at a time by XLA's
own account, arguments and results included), "arguments_mib"}}. Nothing is run: an H100 need not be
here, but JAX's CUDA plugin must be, or its rows are left out.
"""

from typing import Any
from unittest import mock

import jax
from absl import flags

from experiments.benchmarks import quantizer_layers
from fsq_jax import quantizers
from fsq_jax.quantizers import nearest
from fsq_jax.runs import costs
from fsq_jax.runtime import absent_gpus, cli, compiler, outputs
from fsq_jax.runtime.files import write_json

NAMES = ("vq", "vq_ema", "simvq")


def compiled(
    name: str, channels: int, call: str, device, sizes: tuple[int, int]
) -> jax.stages.Compiled:
    """A "forward" or a "step" of a quantizer, for a device that need not be here.

    sizes: tokens, codes.
    """
    tokens, codes = sizes
    options = dict(split_threshold=0.0) if name == "vq_ema" else {}
    module = quantizers.make(name, codebook_size=codes, channels=channels, **options)

    def forward(state, params, z, weight, key):
        del weight, key
        result: Any = module.apply({**state, "params": params}, z)
        return result.codes, result.indices

    function = forward if call == "forward" else quantizer_layers.step_of(module)
    shape = quantizer_layers.shape_of(tokens, channels)
    where = jax.sharding.SingleDeviceSharding(device)
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
        jax.eval_shape(lambda: quantizer_layers.inputs(module, shape)),
    )
    with compiler.made_for(device):
        donated = (0,) if call == "step" else ()
        options = compiler.compiler_options()  # those of training
        program = jax.jit(function, donate_argnums=donated, compiler_options=options)
        return program.lower(*shapes).compile()


def measure(name: str, channels: int, call: str, device, sizes=(8192, 2**18)) -> dict:
    """A row of the file."""
    in_blocks = compiled(name, channels, call, device, sizes)
    with mock.patch.object(nearest, "MAX_ELEMENTS", sizes[0] * sizes[1]):
        whole = compiled(name, channels, call, device, sizes)
    memory: Any = in_blocks.memory_analysis()
    found = {
        "in_blocks_mib": costs.peak_bytes(in_blocks),
        "whole_mib": costs.peak_bytes(whole),
        "arguments_mib": memory.argument_size_in_bytes,
    }
    return {key: round(size / 2**20, 1) for key, size in found.items()}


def main(argv) -> None:
    del argv
    outputs.check_file(flags.FLAGS.out)
    devices = {"cpu": jax.devices("cpu")[0]}
    if absent_gpus.can_compile():
        devices["h100"] = absent_gpus.h100()[0]
    table = {}
    for kind, device in devices.items():
        for name in NAMES:
            for channels in (64, 256):
                for call in ("forward", "step"):
                    row = f"{name}_{channels}_{call}_{kind}"
                    table[row] = measure(name, channels, call, device)
                    print(row, table[row], flush=True)
                    write_json(flags.FLAGS.out, table)


if __name__ == "__main__":
    flags.DEFINE_string("out", None, "File of the results.", required=True)
    cli.run(main)
