"""What every quantizer does: indices decode and encode back, whatever the type, on any devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from fsq_jax import quantizers
from fsq_jax.metrics import codebook
from tests.quantizers.cases import CASES

KEY = jax.random.key(1)
every_case = pytest.mark.parametrize("name", CASES)


def inputs(module, seed: int = 0, shape=(16, 3)) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(*shape, module.channels)).astype(np.float32)


@functools.cache
def variables_of(name: str):
    module = CASES[name].make()
    z = inputs(module)
    return module, jax.jit(lambda: module.init(jax.random.key(0), z))()


@functools.cache
def seen(name: str) -> dict:
    """What a quantizer makes of some inputs, and of all its indices, as one program."""
    case = CASES[name]
    module, variables = variables_of(name)

    def everything(variables, z):
        of = lambda z: module.apply(variables, z)  # noqa: E731
        codes_of = lambda i: module.apply(variables, i, method="indices_to_codes")  # noqa: E731
        low, every = z.astype(jnp.bfloat16), codes_of(jnp.arange(module.codebook_size))
        result = of(z)
        return {
            "result": result,
            "decoded": codes_of(result.indices),
            "low": of(low),
            "full": of(low.astype(jnp.float32)),
            "every": every,
            "again": of(case.latents(every)).indices if case.latents else None,
            "outside": codes_of(jnp.array([-1, module.codebook_size])),
            "one": of(z[0, 0]),
        }

    return jax.tree.map(np.asarray, jax.jit(everything)(variables, inputs(module)))


def test_every_quantizer_has_a_case():
    assert {case.name for case in CASES.values()} == set(quantizers.QUANTIZERS)


@every_case
def test_the_protocol(name):
    module, _ = variables_of(name)
    result = seen(name)["result"]
    assert result.codes.shape == (16, 3, module.channels) and result.codes.dtype == np.float32
    assert result.indices.shape == (16, 3) and result.indices.dtype == np.int32
    assert result.indices.min() >= 0 and result.indices.max() < module.codebook_size
    assert result.loss.shape == () and result.loss.dtype == np.float32
    assert all(value.shape == () for value in result.metrics.values())
    one = seen(name)["one"]  # a single vector is as good as a batch
    np.testing.assert_allclose(one.codes, result.codes[0, 0], atol=1e-6)
    assert one.indices == result.indices[0, 0]


@every_case
def test_every_index_decodes_and_encodes_back(name):
    found = seen(name)
    np.testing.assert_allclose(found["decoded"], found["result"].codes, atol=1e-6)
    assert np.isnan(found["outside"]).all()
    every = found["every"]
    assert np.isfinite(every).all()
    if CASES[name].latents:
        assert len(np.unique(every, axis=0)) == len(every)
        np.testing.assert_array_equal(found["again"], np.arange(len(every)))


@every_case
def test_bfloat16_gives_the_indices_and_the_usage_of_its_float32_copy(name):
    low, full = seen(name)["low"], seen(name)["full"]
    assert low.codes.dtype == np.float32
    np.testing.assert_array_equal(low.indices, full.indices)
    np.testing.assert_array_equal(low.codes, full.codes)
    size = variables_of(name)[0].codebook_size
    usage = [codebook.usage(np.bincount(x.indices.ravel(), minlength=size)) for x in (low, full)]
    assert usage[0] == usage[1] > 0


@pytest.mark.parametrize("axes", ["Auto", "Explicit"])  # ours, and what jax.make_mesh makes
@every_case
def test_eight_devices_are_one(name, axes):
    module, variables = variables_of(name)

    def step(variables, z):
        part = quantizers.part_of_step(jnp.arange(len(z)), len(z), KEY)[quantizers.PART]

        def loss(params, z):
            result, left = module.apply(
                {**variables, **params, quantizers.PART: part["quantizer"]},
                z,
                train=True,
                mutable=quantizers.BATCH,
                rngs={"codebook": KEY},
            )
            return result.loss + (result.codes**2).sum(), (result, left)

        params = {name: tree for name, tree in variables.items() if name == "params"}
        gradients, (result, left) = jax.grad(loss, argnums=(0, 1), has_aux=True)(params, z)
        decoded = module.apply(variables, result.indices, method="indices_to_codes")
        return gradients, (result, left, decoded)

    z = inputs(module)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType[axes],))
    one = jax.jit(step)(variables, z)
    everywhere, by_example = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))
    with jax.set_mesh(mesh):
        eight = jax.jit(step)(jax.device_put(variables, everywhere), jax.device_put(z, by_example))
    assert len(eight[1][0].codes.sharding.device_set) == 8
    np.testing.assert_array_equal(one[1][0].indices, eight[1][0].indices)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-5), one, eight)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.follows])
def test_the_codes_gradient_is_a_slope(name):
    """Of what they follow, rounded straight through, by finite differences of it."""
    module, variables = variables_of(name)
    z, along, weight = (inputs(module, seed) for seed in (0, 1, 2))

    def both(z):
        codes = lambda z: (module.apply(variables, z).codes * weight).sum()  # noqa: E731
        follows = lambda t: (CASES[name].follows(z + t * along) * weight).sum()  # noqa: E731
        slope = (follows(1e-2) - follows(-1e-2)) / 2e-2
        return (jax.grad(codes)(z) * along).sum(), slope

    np.testing.assert_allclose(*jax.jit(both)(z), rtol=1e-2)


@pytest.mark.parametrize(
    "name, of, options",
    [(name, of, options) for name, case in CASES.items() for of, options in case.smooth.items()],
)
def test_the_loss_gradient_is_a_slope(name, of, options):
    """By finite differences, where nothing is stopped and no token changes its code."""
    module, variables = CASES[name].make(**options), variables_of(name)[1]
    at = {"z": inputs(module), "params": variables.get("params", {})}

    def loss(moved):
        values = at | {of: moved}
        return module.apply({**variables, "params": values["params"]}, values["z"]).loss

    def both(x):
        gradient = jax.grad(loss)(x)
        norm = sum((g**2).sum() for g in jax.tree.leaves(gradient)) ** 0.5
        step = lambda t: jax.tree.map(lambda x, g: x + t * g / norm, x, gradient)  # noqa: E731
        return norm, (loss(step(1e-2)) - loss(step(-1e-2))) / 2e-2

    np.testing.assert_allclose(*jax.jit(both)(at[of]), rtol=2e-2)
