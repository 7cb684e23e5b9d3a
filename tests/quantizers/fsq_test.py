"""FSQ: bijection, reach, gradients, precision, options, errors; an independent FSQ's answers."""

import functools
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import fsq_jax
from fsq_jax.quantizers import fsq
from tests.compiled import apply, init
from tests.quantizers.recorded import inputs, pull

PUBLISHED = list(fsq.LEVELS.values())
SMALL = [(2,), (2, 2, 3), (3, 5, 4), (7, 6), (17, 9)]
REFERENCE = pathlib.Path(__file__).parent / "reference" / "vector_quantize_pytorch.npz"

# Compiled as one program each: operation by operation, every shape costs a dozen compilations.
OPTIONS = ("levels", "shift", "grid", "squash", "epsilon")
bound, quantize = (jax.jit(f, static_argnames=OPTIONS) for f in (fsq.bound, fsq.quantize))
bound_and_quantize = jax.jit(
    lambda z, levels, **options: (
        fsq.bound(z, levels, **options),
        fsq.quantize(z, levels, **options),
    ),
    static_argnames=OPTIONS,
)
codes_to_indices, indices_to_codes = (
    jax.jit(f, static_argnames=("levels", "grid"))
    for f in (fsq.codes_to_indices, fsq.indices_to_codes)
)


@functools.cache
def codebook(levels, grid="paper"):
    """Every code, and the indices that they give back."""

    def there_and_back(indices):
        codes = fsq.indices_to_codes(indices, levels, grid=grid)
        return codes, fsq.codes_to_indices(codes, levels, grid=grid)

    return jax.tree.map(np.asarray, jax.jit(there_and_back)(np.arange(math.prod(levels))))


def digits(codes, levels, grid="paper"):
    half = np.array(fsq.half_widths(levels, grid))
    return np.rint(np.asarray(codes) * half + half).astype(int)


def preimage(codes, levels, **options):
    """z that `bound` sends to the codes, or for the outermost codes nearly so, by bisection."""
    half = np.array(fsq.half_widths(levels, options.get("grid", "paper")))
    low, high = np.full(codes.shape, -20.0), np.full(codes.shape, 20.0)
    for _ in range(40):
        middle = (low + high) / 2
        below = np.asarray(bound_and_quantize(middle, levels, **options)[0]) < codes * half
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return (low + high) / 2


def test_published_sizes():
    sizes = {2**4: 15, 2**6: 64, 2**8: 240, 2**9: 512, 2**10: 1000, 2**11: 1920}
    sizes |= {2**12: 4375, 2**14: 15360, 2**16: 64000}
    assert {name: fsq.codebook_size(levels) for name, levels in fsq.LEVELS.items()} == sizes


@pytest.mark.parametrize("grid", fsq.GRIDS)
@pytest.mark.parametrize("levels", PUBLISHED + SMALL)
def test_indices_and_codes_are_a_bijection(levels, grid):
    indices = np.arange(math.prod(levels))
    codes, back = codebook(levels, grid)
    assert codes.dtype == jnp.float32 and np.abs(codes).max() <= 1
    assert len(np.unique(codes, axis=0)) == len(indices)
    assert back.dtype == jnp.int32
    np.testing.assert_array_equal(back, indices)


@pytest.mark.parametrize("options", [{}, {"grid": "symmetric"}, {"shift": "tan"}])
@pytest.mark.parametrize("levels", PUBLISHED + SMALL)
def test_every_code_is_reached(levels, options):
    codes, _ = codebook(levels, options.get("grid", "paper"))
    z = preimage(codes, levels, **options)
    np.testing.assert_array_equal(bound_and_quantize(z, levels, **options)[1], codes)


def test_outermost_of_many_levels_are_reached():
    for levels in [(1001,), (4096,), (2**16,), (2**20,)]:
        codes = quantize(np.array([[-1e4], [1e4]]), levels)
        np.testing.assert_array_equal(digits(codes, levels).ravel(), [0, levels[0] - 1])


def test_first_channel_is_least_significant():
    codes, _ = codebook((3, 5, 4))
    np.testing.assert_array_equal(codes[:4, 0], [-1, 0, 1, -1])
    expected = np.stack([np.arange(60) % 3, np.arange(60) // 3 % 5, np.arange(60) // 15], axis=1)
    np.testing.assert_array_equal(digits(codes, (3, 5, 4)), expected)


def test_grids():
    paper = {2: [-1, 0], 3: [-1, 0, 1], 4: [-1, -0.5, 0, 0.5], 5: [-1, -0.5, 0, 0.5, 1]}
    of = lambda n, grid: fsq.indices_to_codes(np.arange(n), (n,), grid=grid)[:, 0]  # noqa: E731
    codes = jax.jit(lambda: {g: [of(n, g) for n in range(2, 10)] for g in fsq.GRIDS})()
    for n, got in enumerate(codes["paper"][: len(paper)], 2):
        np.testing.assert_array_equal(got, paper[n])
    for n, got in enumerate(codes["symmetric"], 2):
        np.testing.assert_allclose(got, np.linspace(-1, 1, n), atol=1e-7)


def test_zero_is_the_middle_code():
    levels = (3, 4, 5, 6, 7, 8)
    np.testing.assert_array_equal(quantize(np.zeros(6), levels), np.zeros(6))
    np.testing.assert_allclose(bound(np.zeros(6), levels), np.zeros(6), atol=2e-7)
    # tan, as printed, misses zero by these shares of a level.
    missed = bound(np.zeros(4), (2, 4, 6, 8), shift="tan")
    np.testing.assert_allclose(missed, [-0.043, -4.3e-4, -5.4e-5, -1.4e-5], rtol=0.02)


def test_shifts_and_ranges():
    shifts = {"tan": (0.3466, 0.2029, 0.1440), "arctanh": (0.3469, 0.2029, 0.1440)}
    for name, shift in shifts.items():
        # bound is -offset where the shifted input is zero
        value = bound(-np.array(shift), (4, 6, 8), shift=name)
        np.testing.assert_allclose(value, [-0.5] * 3, atol=3e-4)
    ends = bound(np.array([[-50.0] * 4, [50.0] * 4]), (3, 4, 5, 8))
    expected = [[-0.999, -1.9985, -1.998, -3.9965], [0.999, 0.9985, 1.998, 2.9965]]
    np.testing.assert_allclose(ends, expected, atol=1e-5)
    np.testing.assert_allclose(bound(np.array([-1.5608]), (2,), shift="tan"), -0.5, atol=1e-4)


def test_two_levels_are_the_sign():
    z = np.array([[-3.0], [-0.01], [0.01], [3.0]])
    np.testing.assert_array_equal(np.ravel(quantize(z, (2,))), [-1, -1, 0, 0])
    np.testing.assert_array_equal(np.ravel(quantize(z, (2,), grid="symmetric")), [-1, -1, 1, 1])


@pytest.mark.parametrize("squash", fsq.SQUASHES)
@pytest.mark.parametrize("shift", fsq.SHIFTS)
@pytest.mark.parametrize("grid", fsq.GRIDS)
def test_gradient_is_that_of_bound_over_half_width(grid, shift, squash):
    levels = (2, 3, 4, 5, 8)
    options = {"grid": grid, "shift": shift, "squash": squash}
    half = np.array(fsq.half_widths(levels, grid))
    total = lambda z, f: f(z, levels, **options).sum()  # noqa: E731
    slopes = jax.jit(lambda z: [jax.grad(total)(z, f) for f in (fsq.quantize, fsq.bound)])
    got, want = map(np.asarray, slopes(2 * inputs(shape=(64, 5))))
    np.testing.assert_allclose(got, want / half, rtol=1e-5, atol=5e-7)
    assert (np.abs(got) > 0).any(axis=0).all()
    # ... which is the derivative of tanh times the radius
    slope = 0.8 if squash == "ifsq" else 1.0
    middle = 0.5 * (np.array(levels) - 1) * 0.999
    assert (got <= slope * middle / half + 1e-6).all()
    np.testing.assert_array_equal(slopes(np.full((64, 5), 1e4, np.float32))[0], 0)
    far = quantize(np.array([[-1e4] * 5, [1e4] * 5]), levels, **options)
    np.testing.assert_array_equal(digits(far, levels, grid), [[0] * 5, np.array(levels) - 1])


def test_round_ste():
    x = np.array([-1.6, -0.5, 0.2, 1.5], np.float32)
    total = lambda x: fsq.round_ste(x).sum()  # noqa: E731
    got, gradient = jax.jit(lambda x: (fsq.round_ste(x), jax.grad(total)(x)))(x)
    np.testing.assert_array_equal(got, np.round(x))
    np.testing.assert_array_equal(gradient, np.ones(4))


def test_ifsq_is_its_sigmoid():
    z = np.linspace(-6, 6, 101)[:, None]
    want = (2 / (1 + np.exp(-1.6 * z)) - 1) * 8 * 0.999
    np.testing.assert_allclose(bound(z, (17,), squash="ifsq"), want, atol=5e-6)
    np.testing.assert_allclose(bound(np.zeros(1), (8,), squash="ifsq"), 0, atol=1e-6)


@pytest.mark.parametrize("levels", PUBLISHED)
def test_bfloat16_loses_no_code(levels):
    z = inputs(shape=(20_000, len(levels))).astype(jnp.bfloat16)
    module = fsq.FSQ(levels)
    low, gradient = pull(module, {}, z, np.ones(z.shape, np.float32))
    full = apply(module, {}, z.astype(np.float32))
    assert low.codes.dtype == jnp.float32 and low.indices.dtype == jnp.int32
    np.testing.assert_array_equal(low.indices, full.indices)
    np.testing.assert_array_equal(low.codes, full.codes)
    assert gradient.dtype == jnp.bfloat16
    # Codes that travel through bfloat16 still find their index.
    codes, _ = codebook(levels)
    back = codes_to_indices(codes.astype(jnp.bfloat16), levels)
    np.testing.assert_array_equal(back, np.arange(math.prod(levels)))


@pytest.mark.parametrize("grid", fsq.GRIDS)
def test_noise_mixes_rounded_raw_and_perturbed_examples(grid):
    levels, z = (8, 5), inputs(shape=(4000, 3, 2))
    module, half = fsq.FSQ(levels, grid=grid, noise=0.5), np.array(fsq.half_widths(levels, grid))
    rngs = {"codebook": jax.random.key(0)}
    rounding = lambda z: fsq.quantize(z, levels, grid=grid)  # noqa: E731

    @jax.jit
    def train(z):
        noisy = lambda z: module.apply({}, z, train=True, rngs=rngs)  # noqa: E731
        codes, backward = jax.vjp(lambda z: noisy(z).codes, z)
        return codes, noisy(z).indices, backward(z), jax.vjp(rounding, z)[1](z)

    codes, indices, gradient, want = jax.tree.map(np.asarray, train(z))
    plain = jax.tree.map(np.asarray, apply(module, {}, z))
    raw = bound(z, levels, grid=grid) / half
    np.testing.assert_array_equal(indices, plain.indices)
    rounded = (codes == plain.codes).all(axis=(1, 2))
    unrounded = np.isclose(codes, raw, rtol=0, atol=1e-6).all(axis=(1, 2))  # compiled otherwise
    shares = rounded.mean(), unrounded.mean(), (~rounded & ~unrounded).mean()
    np.testing.assert_allclose(shares, [0.25, 0.25, 0.5], atol=0.02)
    noise = np.asarray((codes - raw) * half)[~rounded & ~unrounded]
    assert np.abs(noise).max() <= 0.5 + 1e-6  # half a level either way
    np.testing.assert_allclose([noise.mean(), noise.var()], [0, 1 / 12], atol=3e-3)
    np.testing.assert_allclose(gradient, want, rtol=1e-5, atol=1e-7)
    # One vector is one example, and evaluation draws nothing.
    jax.eval_shape(train, z[0, 0])
    np.testing.assert_array_equal(plain.codes, quantize(z, levels, grid=grid))
    with pytest.raises(ValueError, match="noise must be from 0 to 2/3, not 0.7"):
        fsq.FSQ(levels, noise=0.7)


def test_indices_outside_give_nan():
    codes = indices_to_codes(np.array([-1, 0, 59, 60]), (3, 5, 4))
    np.testing.assert_array_equal(np.isnan(codes).all(axis=1), [True, False, False, True])
    np.testing.assert_array_equal(np.isnan(codes).any(axis=1), [True, False, False, True])


def test_largest_index():
    levels = (2**11, 2**10, 2**10)
    assert fsq.codebook_size(levels) == 2**31
    codes = indices_to_codes(np.array([2**31 - 1, 0]), levels)
    np.testing.assert_array_equal(codes_to_indices(codes, levels), [2**31 - 1, 0])


@pytest.mark.parametrize(
    "levels, words",
    [
        ((8, 1, 5), ["at least 2", "(8, 1, 5)"]),
        ((0,), ["at least 2", "(0,)"]),
        ((), ["at least one channel"]),
        ((8.0, 5), ["integers", "8.0"]),
        (8, ["integers", "8"]),
        ("8-5", ["integers", "8-5"]),
        ((2**16, 2**16), [str(2**32), str(2**31)]),
        ((2**21,), [str(2**21), str(2**20)]),
    ],
)
def test_levels_that_cannot_be(levels, words):
    calls = [
        lambda: fsq.FSQ(levels),
        lambda: fsq.quantize(np.zeros((1, 2)), levels),
        lambda: fsq.codebook_size(levels),
    ]
    for call in calls:
        with pytest.raises(ValueError) as error:
            call()
        assert all(word in str(error.value) for word in words), error.value


def test_other_mistakes():
    with pytest.raises(ValueError, match=r"\(2, 3\), must be 4"):
        fsq.quantize(np.zeros((2, 3)), (8, 5, 5, 5))
    with pytest.raises(ValueError, match="codes"):
        fsq.codes_to_indices(np.zeros((2, 3)), (8, 5, 5, 5))
    with pytest.raises(ValueError, match="Did you mean 'arctanh'"):
        fsq.FSQ((8, 5), shift="arctan")
    with pytest.raises(ValueError, match="Did you mean 'symmetric'"):
        fsq.indices_to_codes(np.zeros(2, int), (8, 5), grid="symetric")
    with pytest.raises(ValueError, match="squash must be one of"):
        fsq.bound(np.zeros(2), (8, 5), squash="relu")
    with pytest.raises(ValueError, match="float32"):
        fsq.indices_to_codes(np.zeros(2), (8, 5))


def test_module():
    module = fsq_jax.FSQ([8, 6, 5])  # a list, as from a JSON config
    assert module == fsq.FSQ((8, 6, 5)) and hash(module) == hash(fsq.FSQ((8, 6, 5)))
    assert (module.codebook_size, module.channels) == (240, 3)
    z = inputs(shape=(2, 4, 4, 3))
    assert jax.eval_shape(module.init, jax.random.key(0), z) == {}
    # No parameters: no apply needed.
    got, bare = jax.jit(lambda z: (module.apply({}, z, train=True), module(z)))(z)
    np.testing.assert_array_equal(got.codes, quantize(z, (8, 6, 5)))
    assert got.indices.shape == (2, 4, 4) and got.loss == 0 and got.metrics == {}
    back = apply(module, {}, got.indices, method="indices_to_codes")
    np.testing.assert_array_equal(back, got.codes)
    np.testing.assert_array_equal(bare.codes, got.codes)

    class Model(nn.Module):
        quantizer: nn.Module

        @nn.compact
        def __call__(self, x):
            return nn.Dense(2)(self.quantizer(nn.Dense(self.quantizer.channels)(x)).codes)

    model = Model(module)
    x = np.ones((2, 7), np.float32)
    params = init(model, x)
    assert set(params["params"]) == {"Dense_0", "Dense_1"}
    gradient = jax.jit(jax.grad(lambda p: model.apply(p, x).sum()))(params)
    assert np.abs(gradient["params"]["Dense_0"]["kernel"]).sum() > 0


@pytest.mark.parametrize("levels", PUBLISHED)
def test_agrees_with_vector_quantize_pytorch(levels):
    with np.load(REFERENCE) as file:
        name = "-".join(map(str, levels))
        z, want, indices = (file[f"{name}/{key}"] for key in ("z", "digits", "indices"))
    z, half = z.astype(np.float32), np.array(fsq.half_widths(levels))
    # Its epsilon has the other sign: with that, every code is equal.
    got = apply(fsq.FSQ(levels, epsilon=-1e-3), {}, z)
    np.testing.assert_array_equal(np.rint(np.asarray(got.codes) * half), want)
    np.testing.assert_array_equal(got.indices, indices)
    # With the paper's, only inputs within 0.006 levels of a bin's edge may differ, by one level.
    bounded, codes = map(np.asarray, bound_and_quantize(z, levels))
    differs = np.rint(codes * half) != want
    to_edge = np.abs(np.abs(bounded - np.rint(bounded)) - 0.5)
    assert differs.mean() < 0.01 and (to_edge[differs] < 0.006).all()


@pytest.mark.parametrize("levels", PUBLISHED + [(2, 2, 3, 4)])
def test_symmetric_grid_agrees_with_vector_quantize_pytorch(levels):
    with np.load(REFERENCE) as file:
        name = "-".join(map(str, levels))
        keys = ("z", "symmetric_digits", "symmetric_indices")
        z, want, indices = (file[f"{name}/{key}"] for key in keys)
    got = apply(fsq.FSQ(levels, grid="symmetric", epsilon=0.0), {}, z.astype(np.float32))
    np.testing.assert_array_equal(digits(got.codes, levels, "symmetric"), want)
    np.testing.assert_array_equal(got.indices, indices)
