"""Products of a few rows in one kernel, interpreted on the CPU, and decoding with all kernels."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("jax.experimental.pallas.triton")

from fsq_jax.models import attention, decode_kernels, uvim_decode, uvim_lm
from fsq_jax.models import row_kernels as lib
from fsq_jax.models.layers import layer_norm
from tests.tiny import random_variables

RNG = np.random.default_rng(0)
EPSILON = 1e-6


def _draw(*shape):
    return RNG.standard_normal(shape, np.float32)


@jax.jit
def _expected(x, weight, bias, norm, residual):
    return jax.nn.gelu(layer_norm(x, *norm, EPSILON) @ weight + bias) + residual


@jax.jit
def _row(x, weight, bias, norm, residual):
    options = dict(norm=norm, epsilon=EPSILON, gelu=True, residual_1O=residual, interpret=True)
    plain = lib.row_product(x, weight.T, interpret=True)
    return lib.row_product(x, weight.T, bias, **options), plain


@jax.jit
def _rows(x, weight, bias, norm, residual):
    options = dict(epsilon=EPSILON, gelu=True, residual_RO=residual, interpret=True)
    normed, shifted, sums = lib.with_norm(weight, bias, norm)
    plain = lib.rows_product(x, lib.in_parts(weight), interpret=True)
    return lib.rows_product(x, lib.in_parts(normed), shifted, sums_O=sums, **options), plain


@pytest.mark.parametrize(
    "product, rows, inputs, outputs",
    [(_row, 1, 64, 256), (_rows, 3, 256, 48), (_rows, 8, 1024, 2048), (_rows, 13, 512, 16)],
)
def test_a_product_has_the_norm_before_and_bias_gelu_and_residual_after(
    product, rows, inputs, outputs
):
    x, weight, bias = _draw(rows, inputs), _draw(inputs, outputs) / 32, _draw(outputs)
    norm, residual = (_draw(inputs), _draw(inputs)), _draw(rows, outputs)
    got, plain = product(x, weight, bias, norm, residual)
    np.testing.assert_allclose(got, _expected(x, weight, bias, norm, residual), atol=2e-5)
    np.testing.assert_allclose(plain, x @ weight, atol=2e-5)


@pytest.mark.parametrize("offset", [0, 4])
def test_rows_with_a_mean_are_multiplied_as_exactly(offset):
    x, weight = (a.astype(jnp.bfloat16) for a in (_draw(8, 256) + offset, _draw(256, 64) / 16))
    norm = 1 + _draw(256) / 10, _draw(256) / 10
    normed, bias, sums = jax.jit(lib.with_norm)(weight, None, norm)
    np.testing.assert_allclose(sums, np.asarray(normed, np.float64).sum(0), atol=1e-5)
    # Only this keeps XLA from adding up what was not rounded, which no CPU shows.
    assert "reduce_precision" in str(jax.make_jaxpr(lib.with_norm)(weight, None, norm))
    options = dict(sums_O=sums, epsilon=EPSILON, interpret=True)
    got = jax.jit(lambda x: lib.rows_product(x, lib.in_parts(normed), bias, **options))(x)
    normal = jax.jit(layer_norm, static_argnums=3)(x.astype(np.float32), *norm, EPSILON)
    expected = np.asarray(normal) @ weight.astype(np.float32)
    error = np.asarray(got, np.float32) - expected
    assert np.sqrt((error**2).mean() / (expected**2).mean()) < 0.003  # 2^-8 is 0.004


def test_what_widths_a_product_takes():
    assert lib.takes(1024, 4096) and lib.takes(4096, 1024) and lib.takes(1024, 3072)
    assert not lib.takes(768, 1024) and not lib.takes(64, 100)
    assert lib.takes_rows(1024, 4096) and lib.takes_rows(256, 256)
    assert not any(lib.takes_rows(*x) for x in [(768, 3072), (2048, 4096), (1024, 8192), (64, 256)])


@functools.cache
def _model():
    """(model, variables, pictures, codes, the logits of all tokens at once) of 17 pictures."""
    model = uvim_lm.CodeLanguageModel(
        vocab_size=9, num_tokens=3, patch=4, width=256, encoder_depth=1, decoder_depth=1,
        num_heads=16, mlp_dim=256,
    )  # fmt: skip
    images, codes = _draw(17, 8, 8, 3), RNG.integers(0, 8, (17, 3)).astype(np.int32)
    variables = random_variables(model, images, codes)
    logits = np.asarray(jax.jit(model.apply)(variables, images, codes))
    return model, variables, images, codes, logits


@pytest.mark.parametrize("batch", [1, 2, 17])  # one row, several, and a memory that is read
def test_kernels_write_the_logits_that_all_tokens_at_once_give(batch, monkeypatch):
    model, variables, *arrays = _model()
    images, codes, expected = (x[:batch] for x in arrays)
    called = []

    def interpreted(module, name):
        function = getattr(module, name)

        def call(*args, **options):
            called.append(name)
            return function(*args, interpret=True, **options)

        monkeypatch.setattr(module, name, call)

    for name in ("read", "append_and_read", "read_memory"):
        interpreted(decode_kernels, name)
    for name in ("row_product", "rows_product"):
        interpreted(lib, name)
    which = lambda *_, joined=False: "fused" if joined else "xla"  # noqa: E731
    monkeypatch.setattr(attention, "resolve", which)

    @jax.jit
    def walk(variables, images, codes):
        step, cache = uvim_decode.decoding(model, variables["params"], images)
        tokens = jnp.pad(codes[:, :-1] + 1, ((0, 0), (1, 0)))

        def one(cache, now):
            logits, cache = step(cache, *now)
            return cache, logits

        return jax.lax.scan(one, cache, (tokens.T, jnp.arange(3)))[1].swapaxes(0, 1)

    assert expected.std() > 0.3
    np.testing.assert_allclose(walk(variables, images, codes), expected, atol=1e-4)
    kernels = {1: {"row_product", "read"}, 2: {"rows_product", "read"}, 17: {"read_memory"}}
    assert set(called) == kernels[batch] | {"append_and_read"}
