"""What the tests of quantizers share: inputs, compiled calls, an independent library's answers."""

import pathlib

import jax
import numpy as np

REFERENCE = pathlib.Path(__file__).parent / "reference" / "quantizers_scalar.npz"


def inputs(seed: int = 0, shape=(2, 5, 3)) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def apply(module, variables, *args, **kwargs):
    return jax.jit(lambda v, *a: module.apply(v, *a, **kwargs))(variables, *args)


def recorded(name: str) -> dict[str, np.ndarray]:
    with np.load(REFERENCE) as file:
        arrays = {n.split("/")[1]: file[n] for n in file if n.startswith(f"{name}/")}
    return arrays | {n: arrays[n].astype(np.float32) for n in ("z", "weight")}


def pull(module, variables, z, weight):
    """(Quantized, gradient of z) where the decoder's gradient is `weight`."""

    def both(z):
        result, backward = jax.vjp(lambda z: module.apply(variables, z).codes, z)
        del result
        return module.apply(variables, z), backward(weight)[0]

    return jax.jit(both)(z)
