"""Residual and grouped FSQ: an independent one's answers, one fine grid, running statistics."""

import functools
import math

import jax
import numpy as np
import pytest

from fsq_jax import quantizers
from fsq_jax.quantizers import fsq, residual_fsq
from fsq_jax.quantizers.residual_fsq import GroupedFSQ, ResidualFSQ
from tests.compiled import apply, init
from tests.quantizers.recorded import inputs, pull, recorded

LEVELS = (5, 4, 3)

soft_clamp, nearest = (
    jax.jit(f, static_argnums=1) for f in (residual_fsq.soft_clamp, residual_fsq.nearest)
)
part_indices = jax.jit(residual_fsq.part_indices, static_argnums=(1, 2))


def open_stages(z: np.ndarray, levels, stages: int) -> np.ndarray:
    """In how many stages what is left is in [-1, 1], outside which the library's clamp is flat."""
    left, open_ = np.asarray(soft_clamp(z, levels)), np.zeros(z.shape)
    for i in range(stages):
        scale = np.array(levels, np.float32) ** -i
        open_ += np.abs(left / scale) <= 1
        left = left - scale * np.asarray(nearest(left / scale, levels))
    return open_


@pytest.mark.parametrize(
    "name, levels, stages, groups",
    [
        ("residual_5-4-3-8_x2", (5, 4, 3, 8), 2, 1),
        ("residual_3-2-4_x4", (3, 2, 4), 4, 1),
        ("residual_8-5-5-5_x1", (8, 5, 5, 5), 1, 1),
        ("grouped_5-4_x2_g3", (5, 4), 2, 3),
    ],
)
def test_agrees_with_vector_quantize_pytorch(name, levels, stages, groups):
    """Codes and indices are equal; there each stage adds its own gradient, here they are one."""
    want, every = recorded(name), levels * groups
    got, gradient = pull(ResidualFSQ(every, stages), {}, want["z"], want["weight"])
    np.testing.assert_allclose(got.codes, want["codes"], atol=1e-6)
    indices = part_indices(got.indices, every, stages)
    if groups > 1:  # there of each group and stage, [groups, 1, N, stages]
        indices = np.moveaxis(np.asarray(part_indices(indices, levels, groups)), -1, 0)
    np.testing.assert_array_equal(indices, want["indices"])
    times = open_stages(want["z"], every, stages)
    assert times.max() == stages and (times < stages).any()
    np.testing.assert_allclose(np.asarray(gradient) * times, want["gradient"], rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("level, stages", [(2, 4), (5, 2)])
def test_stages_are_one_grid_of_many_levels(level, stages):
    module = ResidualFSQ((level,), stages)
    codes = np.ravel(apply(module, {}, np.arange(level**stages), method="indices_to_codes"))
    steps = np.diff(np.sort(codes))
    np.testing.assert_allclose(steps, 2 / (level - 1) / level ** (stages - 1), rtol=1e-5)
    assert module.codebook_size == level**stages
    # ... of which z is sent to the nearest, once it is bounded.
    z = np.linspace(-6, 6, 4001, dtype=np.float32)[:, None]
    bounded = np.asarray(soft_clamp(z, (level,)))
    want = codes[np.abs(bounded - codes).argmin(axis=1)]
    got = apply(module, {}, z)
    np.testing.assert_allclose(np.ravel(got.codes), want, atol=1e-6)
    assert len(np.unique(got.indices)) == level**stages


def test_gradient_is_that_of_the_bound():
    z, weight = inputs(), inputs(1)
    _, got = pull(ResidualFSQ(LEVELS, 3), {}, z, weight)
    bound = lambda z: (residual_fsq.soft_clamp(z, LEVELS) * weight).sum()  # noqa: E731
    np.testing.assert_allclose(got, jax.jit(jax.grad(bound))(z), rtol=1e-6)


@pytest.mark.parametrize("options", [{}, {"grid": "symmetric", "squash": "ifsq"}])
def test_groups_are_levels_repeated(options):
    z, weight = inputs(shape=(7, 6)), inputs(1, (7, 6))
    got = pull(GroupedFSQ(LEVELS, 2, **options), {}, z, weight)
    want = pull(fsq.FSQ(LEVELS * 2, **options), {}, z, weight)
    jax.tree.map(np.testing.assert_array_equal, got, want)
    first, second = np.moveaxis(np.asarray(part_indices(got[0].indices, LEVELS, 2)), -1, 0)
    of_group = apply(fsq.FSQ(LEVELS, **options), {}, z[:, 3:]).indices
    np.testing.assert_array_equal(second, of_group)
    np.testing.assert_array_equal(got[0].indices, first + second * math.prod(LEVELS))
    assert quantizers.levels(GroupedFSQ(LEVELS, 2)) == LEVELS * 2
    assert quantizers.levels(fsq.FSQ(LEVELS)) == LEVELS
    assert quantizers.levels(ResidualFSQ(LEVELS, 2)) == ()


def test_grouped_noise_is_drawn_in_training():
    module = GroupedFSQ(LEVELS, 2, noise=0.5)
    z, rngs = inputs(shape=(64, 6)), {"codebook": jax.random.key(0)}
    got = jax.tree.map(np.asarray, apply(module, {}, z, train=True, rngs=rngs))
    plain = apply(module, {}, z)
    assert 0 < (got.codes != plain.codes).all(axis=1).mean() < 1
    np.testing.assert_array_equal(got.indices, plain.indices)


@functools.partial(jax.jit, static_argnums=1)
def quantize(z, levels):
    code = fsq.quantize(z, levels, grid="symmetric")
    return code, fsq.codes_to_indices(code, levels, grid="symmetric")


def in_numpy(z, params, state, levels, stages, scaling):
    """(codes, indices [..., S], what each stage saw), as loops over stages."""
    left, total, indices, seen = z.astype(np.float64), 0.0, [], []
    for s in range(stages):
        gain, bias, mean = np.exp(params["log_scale"][s]), 0.0, 0.0
        if scaling == "layer_norm":
            gain = gain / np.sqrt(state["variance"][s] + 1e-10)
            bias, mean = params["bias"][s], state["mean"][s]
        code, index = map(np.asarray, quantize(np.float32(gain * (left - mean) + bias), levels))
        indices.append(index)
        part = (code.astype(np.float64) - bias) / gain + mean
        seen.append(left)
        left, total = left - part, total + part
    return total, np.stack(indices, -1), np.stack(seen, -2)


@pytest.mark.parametrize("scaling", ["layer_norm", "learned"])
def test_scaled_stages_are_the_loop(scaling):
    module = ResidualFSQ(LEVELS, 3, scaling)
    z, rng = inputs(), np.random.default_rng(1)
    variables = jax.tree.map(np.asarray, init(module, z))
    shapes = jax.tree.map(np.shape, variables)
    each = (3, 3) if scaling == "layer_norm" else (3, 1)
    assert shapes["params"]["log_scale"] == each
    variables = jax.tree.map(lambda x: x + 0.2 * np.float32(rng.uniform(size=x.shape)), variables)
    state = variables.get("codebook_state", {})
    got = apply(module, variables, z)
    codes, indices, _ = in_numpy(z, variables["params"], state, LEVELS, 3, scaling)
    np.testing.assert_allclose(got.codes, codes, atol=2e-5)
    np.testing.assert_array_equal(part_indices(got.indices, LEVELS, 3), indices)
    back = apply(module, variables, got.indices, method="indices_to_codes")
    np.testing.assert_array_equal(back, got.codes)
    loss = lambda p: (module.apply({**variables, "params": p}, z).codes ** 2).sum()  # noqa: E731
    grads = jax.jit(jax.grad(loss))(variables["params"])
    assert all((np.abs(g) > 0).all() for g in jax.tree.leaves(grads))


def test_running_statistics():
    """They are faded by the momentum once a step, whether it comes whole or in microbatches."""
    module, z = ResidualFSQ(LEVELS, 2, "layer_norm", momentum=0.75), inputs(shape=(8, 4, 3)) + 1
    start = jax.tree.map(np.asarray, init(module, z))
    state = start["codebook_state"]
    np.testing.assert_array_equal(state["mean"], np.zeros((2, 3)))
    np.testing.assert_allclose(state["variance"], [[1, 1, 1], [1 / 25, 1 / 16, 1 / 9]], rtol=1e-6)
    seen = in_numpy(z, start["params"], state, LEVELS, 2, "layer_norm")[2].reshape(-1, 2, 3)
    want = {"mean": 0.25 * seen.mean(axis=0), "variance": 0.25 * seen.var(axis=0)}
    want["variance"] += 0.75 * state["variance"]
    train = dict(train=True, mutable="codebook_state")
    got, moved = apply(module, start, z, **train)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        dict(moved["codebook_state"]),
        want,
    )
    # The call itself has used the old ones, which is what its codes are decoded with.
    np.testing.assert_array_equal(got.codes, apply(module, start, z).codes)
    parts = [
        apply(module, start, part, train=True, mutable=quantizers.BATCH)[1][quantizers.BATCH]
        for part in np.split(z, 4)
    ]
    added = jax.tree.map(lambda *values: sum(map(np.asarray, values)), *parts)
    in_parts = jax.jit(module.after_step)(state, added, None)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        in_parts,
        dict(moved["codebook_state"]),
    )
    _, kept = apply(module, start, z, mutable="codebook_state")  # not in evaluation
    jax.tree.map(np.testing.assert_array_equal, kept["codebook_state"], state)


def test_the_running_norm_keeps_later_stages_at_work():
    """Without it they see what is too small for their grid."""
    z, errors = 2 * inputs(shape=(500, 3)), {}
    for scaling in ("layer_norm", "learned"):
        for stages in (1, 3):
            module = ResidualFSQ((5, 5, 5), stages, scaling, momentum=0.5)
            variables = init(module, z)
            step = lambda v, m=module: m.apply(v, z, train=True, mutable="codebook_state")  # noqa: E731
            step = jax.jit(step)
            for _ in range(20):
                got, state = step(variables)
                variables = {**variables, **state}
            errors[scaling, stages] = np.abs(np.asarray(got.codes) - z).mean()
    assert errors["layer_norm", 3] < errors["layer_norm", 1] / 3
    assert errors["layer_norm", 3] < errors["learned", 3] < errors["learned", 1]


def test_mistakes():
    with pytest.raises(ValueError, match=r"1000000000000 codes, more than the 2147483648"):
        ResidualFSQ((10,) * 6, 2)
    with pytest.raises(ValueError, match="at least 2, but levels are"):
        GroupedFSQ((8, 1), 2)
    with pytest.raises(ValueError, match="must be a sequence of integers"):
        ResidualFSQ(8, 2)
    with pytest.raises(ValueError, match=r"at most 1048576, but levels are \(1073741824,\)"):
        ResidualFSQ((1024,), 3)
    with pytest.raises(ValueError, match="num_stages=0"):
        ResidualFSQ((8, 5), 0)
    with pytest.raises(ValueError, match="num_groups=0"):
        GroupedFSQ((8, 5), 0)
    with pytest.raises(ValueError, match="did you mean 'layer_norm'"):
        ResidualFSQ((8, 5), 2, "layernorm")
    with pytest.raises(ValueError, match=r"\(2, 3\), must be 2, one for each of the levels"):
        ResidualFSQ((8, 5), 2).apply({}, np.zeros((2, 3)))
