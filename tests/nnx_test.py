"""The NNX shells give what the Linen ones give, through NNX's transformations."""

import jax
import numpy as np
import pytest
from flax import nnx

import fsq_jax
from fsq_jax import nnx as shells
from fsq_jax import quantizers
from fsq_jax.nnx import FSQ
from tests.quantizers.cases import CASES

Z = np.random.default_rng(0).normal(size=(3, 4, 3)).astype(np.float32)


def check(got, options):
    want = jax.jit(lambda: fsq_jax.FSQ((8, 6, 5), **options).apply({}, Z))()
    np.testing.assert_array_equal(got.codes, want.codes)
    np.testing.assert_array_equal(got.indices, want.indices)
    assert got.loss == 0 and got.metrics == {}


@pytest.mark.parametrize("options", [{}, {"grid": "symmetric", "squash": "ifsq", "epsilon": 0.0}])
def test_equals_linen(options):
    module = FSQ([8, 6, 5], **options)
    assert (module.levels, module.codebook_size, module.channels) == ((8, 6, 5), 240, 3)
    check(module(Z), options)
    check(nnx.jit(lambda m, z: m(z, train=True))(module, Z), options)
    graph, state = nnx.split(module)
    assert not jax.tree.leaves(state)
    check(jax.jit(lambda state, z: nnx.merge(graph, state)(z))(state, Z), options)
    back = nnx.jit(lambda m, i: m.indices_to_codes(i))(module, module(Z).indices)
    np.testing.assert_array_equal(back, module(Z).codes)


def test_inside_a_model():
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.encoder = nnx.Linear(7, 3, rngs=rngs)
            self.quantizer = FSQ((8, 6, 5))

        def __call__(self, x):
            return self.quantizer(self.encoder(x)).codes

    model = Model(nnx.Rngs(0))
    gradient = nnx.jit(nnx.grad(lambda m, x: m(x).sum()))(model, np.ones((2, 7), np.float32))
    assert np.abs(gradient["encoder"]["kernel"][...]).sum() > 0


def test_errors():
    with pytest.raises(ValueError, match="at least 2"):
        FSQ((8, 1))
    with pytest.raises(ValueError, match="Did you mean 'symmetric'"):
        FSQ((8, 5), grid="symetric")


SHELLS = {shell.kind: shell for shell in shells.Quantizer.__subclasses__()}


def linen_variables(module) -> dict:
    """{"params": tree, "codebook_state": tree} of a shell's variables."""
    kinds = {"params": nnx.Param, "codebook_state": shells.CodebookState}
    trees = {name: nnx.to_pure_dict(nnx.state(module, kind)) for name, kind in kinds.items()}
    return {name: tree for name, tree in trees.items() if tree}


def test_every_quantizer_has_a_shell():
    assert set(SHELLS) == set(quantizers.QUANTIZERS.values())


# Of each quantizer one, and what draws or keeps more.
@pytest.mark.parametrize("name", [*quantizers.QUANTIZERS, "fsq_noise", "residual_fsq_layer_norm"])
def test_every_shell_equals_linen(name):
    case = CASES[name]
    linen, rngs = case.make(), nnx.Rngs(params=0, codebook=1)
    shell = SHELLS[type(linen)](**case.options, rngs=rngs)
    assert (shell.codebook_size, shell.channels) == (linen.codebook_size, linen.channels)
    z = np.random.default_rng(0).normal(size=(16, 3, linen.channels)).astype(np.float32)
    variables = linen_variables(shell)
    shapes = jax.eval_shape(lambda: linen.init(jax.random.key(0), z))
    assert jax.tree.structure(dict(shapes)) == jax.tree.structure(variables)

    def both(shell, z):
        linens = linen.apply(variables, z)
        codes = linen.apply(variables, linens.indices, method="indices_to_codes")
        ours = shell(z)
        return (ours, shell.indices_to_codes(ours.indices)), (linens, codes)

    ours, linens = nnx.jit(both)(shell, z)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), ours, linens)

    # A training call updates the state as Linen's does, in place, and draws again every time.
    train = nnx.jit(lambda shell, z: shell(z, train=True).codes)
    first, second = train(shell, z), train(shell, z)
    changing = name in ("fsq_noise", "residual_fsq_layer_norm", "vq_ema")
    assert (np.asarray(first) != np.asarray(second)).any() == changing
    step = jax.jit(
        lambda variables: linen.apply(
            variables, z, train=True, mutable="codebook_state", rngs={"codebook": jax.random.key(0)}
        )[1]
    )
    for _ in range(2 if "codebook_state" in variables else 0):
        variables = {**variables, **step(variables)}
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        linen_variables(shell),
        variables,
    )
