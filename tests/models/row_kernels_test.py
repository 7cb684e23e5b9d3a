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
    return jnp.asarray(RNG.standard_normal(shape, np.float32))


def _expected(x, weight, bias, norm, residual):
    return jax.nn.gelu(layer_norm(x, *norm, EPSILON) @ weight + bias) + residual


def test_a_product_of_one_row_has_the_norm_before_and_bias_gelu_and_residual_after():
    x, weight, bias, residual = _draw(1, 64), _draw(64, 256), _draw(256), _draw(1, 256)
    norm = _draw(64), _draw(64)
    got = lib.row_product(
        x, weight.T, bias, norm=norm, epsilon=EPSILON, gelu=True, residual_1O=residual,
        interpret=True,
    )  # fmt: skip
    np.testing.assert_allclose(got, _expected(x, weight, bias, norm, residual), atol=2e-5)
    np.testing.assert_allclose(lib.row_product(x, weight.T, interpret=True), x @ weight, atol=2e-5)


@pytest.mark.parametrize("rows, inputs, outputs", [(3, 256, 48), (8, 1024, 2048), (13, 512, 16)])
def test_a_product_of_rows_has_them_too(rows, inputs, outputs):
    x, weight, bias = _draw(rows, inputs), _draw(inputs, outputs) / 32, _draw(outputs)
    norm, residual = (_draw(inputs), _draw(inputs)), _draw(rows, outputs)
    normed, shifted = lib.with_norm(weight, bias, norm)
    got = lib.rows_product(
        x, lib.in_parts(normed), shifted, norm=True, epsilon=EPSILON, gelu=True,
        residual_RO=residual, interpret=True,
    )  # fmt: skip
    np.testing.assert_allclose(got, _expected(x, weight, bias, norm, residual), atol=2e-5)
    got = lib.rows_product(x, lib.in_parts(weight), interpret=True)
    np.testing.assert_allclose(got, x @ weight, atol=2e-5)


def test_what_widths_a_product_takes():
    assert lib.takes(1024, 4096) and lib.takes(4096, 1024) and lib.takes(1024, 3072)
    assert not lib.takes(768, 1024) and not lib.takes(64, 100)
    assert lib.takes_rows(1024, 4096) and lib.takes_rows(256, 256)
    assert not any(lib.takes_rows(*x) for x in [(768, 3072), (2048, 4096), (1024, 8192), (64, 256)])


@pytest.mark.parametrize("batch", [1, 2, 17])  # one row, several, and a memory that is read
def test_kernels_write_the_logits_that_all_tokens_at_once_give(batch, monkeypatch):
    model = uvim_lm.CodeLanguageModel(
        vocab_size=9, num_tokens=3, patch=4, width=256, encoder_depth=1, decoder_depth=1,
        num_heads=16, mlp_dim=256,
    )  # fmt: skip
    image, codes = _draw(batch, 8, 8, 3), RNG.integers(0, 8, (batch, 3)).astype(np.int32)
    variables = random_variables(model, image, codes)
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
    def walk(variables, image, codes):
        step, cache = uvim_decode.decoding(model, variables["params"], image)
        tokens = jnp.pad(codes[:, :-1] + 1, ((0, 0), (1, 0)))

        def one(cache, now):
            logits, cache = step(cache, *now)
            return cache, logits

        return jax.lax.scan(one, cache, (tokens.T, jnp.arange(3)))[1].swapaxes(0, 1)

    expected = jax.jit(functools.partial(model.apply, variables))(image, codes)
    assert expected.std() > 0.3
    np.testing.assert_allclose(walk(variables, image, codes), expected, atol=1e-4)
    kernels = {1: {"row_product", "read"}, 2: {"rows_product", "read"}, 17: {"read_memory"}}
    assert set(called) == kernels[batch] | {"append_and_read"}
