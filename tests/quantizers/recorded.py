"""What tests of quantizers share: inputs, a compiled gradient, another library's answers."""

import functools
import pathlib

import jax
import numpy as np

REFERENCE = pathlib.Path(__file__).parent / "reference" / "quantizers_scalar.npz"


def inputs(seed: int = 0, shape=(2, 5, 3)) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def recorded(name: str) -> dict[str, np.ndarray]:
    with np.load(REFERENCE) as file:
        arrays = {n.split("/")[1]: file[n] for n in file if n.startswith(f"{name}/")}
    return arrays | {n: arrays[n].astype(np.float32) for n in ("z", "weight")}


@functools.partial(jax.jit, static_argnums=0)
def pull(module, variables, z, weight):
    """(Quantized, gradient of z) where the decoder's gradient is `weight`."""

    def call(z):
        result = module.apply(variables, z)
        return result.codes, result

    _, backward, result = jax.vjp(call, z, has_aux=True)
    return result, backward(weight)[0]
