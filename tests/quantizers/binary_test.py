"""LFQ and BSQ: an independent one's answers, entropies over all codes, 2^18 of them."""

import functools

import jax
import numpy as np
import pytest

from fsq_jax.quantizers import binary
from fsq_jax.quantizers.binary import BSQ, LFQ
from tests.compiled import apply
from tests.quantizers.recorded import inputs, pull, recorded

BITS = 6


@functools.partial(jax.jit, static_argnums=1)
def entropies(logits, group_bits):
    return binary.token_entropy(logits), binary.codebook_entropy(logits, group_bits)


indices_of = jax.jit(binary.codes_to_indices)


@functools.partial(jax.jit, static_argnums=1)
def codes_of(indices, bits):
    return binary.indices_to_codes(indices, bits)


def module_of(name: str):
    """Ours with the recorded one's options, and the temperature."""
    temperature = 1 / (100.0 if name.endswith("sharp") else 3.0)
    kind = BSQ if name.startswith("bsq") else LFQ
    options = dict(entropy_temperature=temperature, entropy_bits=0, commitment_weight=0.25)
    return kind(2**BITS, **options)


@pytest.mark.parametrize("name", ["lfq_6", "lfq_6_sharp", "bsq_6", "bsq_6_sharp"])
def test_agrees_with_vector_quantize_pytorch(name):
    """All but two things: its first bit is the most significant, and BSQ's codes pass on 1 / D."""
    want, module = recorded(name), module_of(name)
    got, gradient = pull(module, {}, want["z"], want["weight"])
    np.testing.assert_allclose(got.codes, want["codes"], atol=1e-6)
    flipped = indices_of(np.asarray(got.codes)[..., ::-1])
    np.testing.assert_array_equal(flipped, want["indices"])
    np.testing.assert_allclose(np.asarray(gradient) / module.scale, want["gradient"], atol=1e-5)
    # It takes the logarithm of 1e-5 for that of less: e^-1 1e-5 off for each of 64 at the most.
    names = ("token_entropy", "codebook_entropy", "commitment_loss")
    values = [got.loss, *(got.metrics[n] for n in names)]
    np.testing.assert_allclose(values, want["losses"], rtol=1e-5, atol=64 * 0.37e-5)
    loss_gradient = jax.jit(jax.grad(lambda z: module.apply({}, z).loss))(want["z"])
    largest = np.abs(want["loss_gradient"]).max()
    np.testing.assert_allclose(loss_gradient, want["loss_gradient"], atol=0.01 * largest)


def test_what_is_computed_in_parts_is_the_sum_over_all_codes():
    """p(c | z) over all 2^D codes, as [N, 2^D], for odd and even D."""
    for bits in (1, 5):
        z = inputs(bits, (11, bits)).astype(np.float64)
        codes = np.asarray(codes_of(np.arange(2**bits), bits))
        affinity = 2 * z @ codes.T / 0.7
        p = np.exp(affinity) / np.exp(affinity).sum(axis=1, keepdims=True)
        mean = p.mean(axis=0)
        logits = np.float32(4 * z / 0.7)
        got = entropies(logits, bits)
        want = -(p * np.log(p)).sum(axis=1).mean(), -(mean * np.log(mean)).sum()
        np.testing.assert_allclose(got, want, rtol=1e-5)
        by_bit = 0.0
        for i in range(bits):
            share = p[:, codes[:, i] > 0].sum(axis=1).mean()
            by_bit -= share * np.log(share) + (1 - share) * np.log(1 - share)
        np.testing.assert_allclose(entropies(logits, 1)[1], by_bit, rtol=1e-5)
        assert by_bit > want[1] - 1e-6


def test_losses_by_finite_differences():
    for module in (LFQ(16, entropy_temperature=0.5), BSQ(16, commitment_weight=0.5)):
        z, direction = inputs(1, (7, 4)), inputs(2, (7, 4))
        loss = jax.jit(lambda z, m=module: m.apply({}, z).loss)
        slope = np.subtract(loss(z + 1e-2 * direction), loss(z - 1e-2 * direction)) / 2e-2
        got = (np.asarray(jax.jit(jax.grad(loss))(z)) * direction).sum()
        np.testing.assert_allclose(got, slope, rtol=2e-2)


def test_extremes_of_the_entropies():
    logits = 1e3 * np.asarray(codes_of(np.arange(2**5), 5))  # sure, each code once
    np.testing.assert_allclose(entropies(logits, 5), [0, 5 * np.log(2)], atol=1e-4)
    np.testing.assert_allclose(entropies(0 * logits, 5), 2 * [5 * np.log(2)], rtol=1e-5)
    np.testing.assert_allclose(entropies(logits[:1] + 0 * logits, 5), [0, 0], atol=1e-4)
    gradient = jax.jit(jax.grad(lambda x: binary.codebook_entropy(x, 5)))
    assert np.isfinite(gradient(logits)).all() and np.isfinite(gradient(100 * logits)).all()


def test_a_codebook_of_2_to_the_18_makes_no_matrix_of_tokens_and_codes():
    module, z = LFQ(2**18), inputs(shape=(2, 64, 18))
    text = str(jax.make_jaxpr(jax.grad(lambda z: module.apply({}, z).loss))(z))
    assert "f32[128,1,512]" in text and "f32[1,512,512]" in text and "[128,262144]" not in text
    got = apply(module, {}, z)
    np.testing.assert_allclose(got.metrics["codebook_entropy"], np.log(128), rtol=0.02)


def test_bits():
    codes = np.asarray(codes_of(np.array([-1, 0, 1, 6, 7, 8]), 3))
    assert np.isnan(codes[[0, 5]]).all()
    np.testing.assert_array_equal(codes[1:5], [[-1] * 3, [1, -1, -1], [-1, 1, 1], [1] * 3])
    np.testing.assert_array_equal(indices_of(codes[1:5]), [0, 1, 6, 7])
    np.testing.assert_array_equal(binary.signs(np.array([-0.1, 0.0, 0.1])), [-1, -1, 1])
    np.testing.assert_array_equal(
        indices_of(codes_of(np.array([2**31 - 1, 0]), 31)), [2**31 - 1, 0]
    )


def test_bsq_is_on_the_sphere():
    z = inputs(shape=(9, 5)) * 7
    got, gradient = pull(BSQ(32), {}, z, np.ones_like(z))
    np.testing.assert_allclose((np.asarray(got.codes) ** 2).sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(got.indices, apply(LFQ(32), {}, z).indices)
    outward = (np.asarray(gradient) * z).sum(axis=1)
    np.testing.assert_allclose(outward, 0, atol=1e-6)  # along the sphere
    zero = jax.jit(jax.grad(lambda z: BSQ(32).apply({}, z).codes.sum()))(np.zeros((1, 5)))
    assert np.isfinite(zero).all()


@pytest.mark.parametrize("make", [LFQ, BSQ])
def test_mistakes(make):
    for size in (0, 1, 3, 1000, 2**32):
        with pytest.raises(ValueError, match=f"power of two of codes, .*codebook_size={size}"):
            make(size)
    with pytest.raises(ValueError, match="entropy_bits=5 must divide the 6 bits"):
        make(64, entropy_bits=5)
    with pytest.raises(ValueError, match="groups of at most 24"):
        make(2**26, entropy_bits=26)
    with pytest.raises(ValueError, match=r"\(2, 5\), must be 6, one for each bit"):
        make(64).apply({}, np.zeros((2, 5)))
    assert make(2**26, entropy_weight=0.0).channels == 26
