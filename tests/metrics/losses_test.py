import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fsq_jax.metrics import losses


def test_squared_error_is_one_mean_per_example():
    images = np.stack([np.zeros((2, 3, 3)), np.ones((2, 3, 3))]).astype(np.float32)
    reconstruction = np.full_like(images, 0.5)
    reconstruction[0, 0, 0, 0] = 2.0
    expected = [(17 * 0.25 + 4) / 18, 0.25]
    np.testing.assert_allclose(losses.squared_error(images, reconstruction), expected, rtol=1e-6)
    np.testing.assert_allclose(losses.perceptual_distance(images, images), [0, 0])


def test_adversarial_losses_match_logarithms_of_sigmoids():
    real, fake = np.array([-3.0, 0.0, 2.0]), np.array([1.0, -1.0, 50.0])

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    generator_loss, discriminator_loss = map(
        jax.jit, (losses.generator_loss, losses.discriminator_loss)
    )
    np.testing.assert_allclose(generator_loss(fake), -np.log(sigmoid(fake)), atol=1e-6)
    expected = -np.log(sigmoid(real)) + np.logaddexp(0, fake)
    np.testing.assert_allclose(discriminator_loss(real, fake), expected, rtol=1e-6)


def test_r1_is_the_squared_gradient_of_each_example():
    rng = np.random.default_rng(0)
    images = rng.random((3, 4, 4, 2)).astype(np.float32)
    weights = rng.standard_normal((4, 4, 2)).astype(np.float32)

    def logits(x):  # d/dx = 3 w x^2
        return jnp.sum(weights * x**3, (1, 2, 3))

    expected = np.square(3 * weights * images**2).sum((1, 2, 3))
    gradient = jax.grad(lambda x: logits(x).sum())(images)
    np.testing.assert_allclose(jax.jit(losses.r1_penalty)(gradient), expected, rtol=1e-5)


def test_r1_can_be_differentiated():
    images = np.ones((2, 2, 2, 1), np.float32)

    def penalty(scale):  # D = scale * sum x^2: penalty = sum (2 scale x)^2 = 16 scale^2
        return losses.r1_penalty(jax.grad(lambda x: scale * jnp.sum(x**2))(images)).sum()

    assert jax.jit(jax.grad(penalty))(3.0) == pytest.approx(2 * 32 * 3.0)


def test_lecam_penalises_against_the_means_before_the_batch():
    state = losses.LecamState(real=jnp.float32(1.0), fake=jnp.float32(-1.0))
    real, fake = np.array([2.0, -2.0]), np.array([0.5, 3.0])
    penalty = jax.jit(losses.lecam)(real, fake, state)
    np.testing.assert_allclose(penalty, [3.0**2 + 0.5**2, 0.0], rtol=1e-6)
    new = losses.lecam_after_step(state, real.mean(), fake.mean(), decay=0.9)
    assert float(new.real) == pytest.approx(0.9)
    assert float(new.fake) == pytest.approx(-0.9 + 0.1 * 1.75)


def _smoothed_cross_entropy(logits, targets, mask, smoothing):
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    goal = (1 - smoothing) * np.eye(logits.shape[-1])[targets] + smoothing / logits.shape[-1]
    return ((-(goal * log_p).sum(-1)) * mask).sum(-1) / np.maximum(mask.sum(-1), 1)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_masked_cross_entropy_matches_the_definition(smoothing):
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((3, 5, 7)).astype(np.float32)
    targets = rng.integers(0, 7, (3, 5))
    mask = np.array([[1, 1, 1, 1, 1], [0, 1, 0, 1, 0], [0, 0, 0, 0, 0]], bool)
    expected = _smoothed_cross_entropy(logits.astype(np.float64), targets, mask, smoothing)
    actual = jax.jit(losses.masked_cross_entropy)(logits, targets, mask, smoothing)
    np.testing.assert_allclose(actual, expected, atol=1e-5)
    assert actual[2] == 0


def test_masked_cross_entropy_never_reads_targets_outside_the_mask():
    logits = jnp.zeros((1, 3, 4))
    mask = np.array([[False, True, True]])

    def loss(logits):
        return losses.masked_cross_entropy(logits, jnp.array([[999, 1, 2]]), mask, 0.1)[0]

    value, gradient = jax.jit(jax.value_and_grad(loss))(logits)
    assert float(value) == pytest.approx(np.log(4))
    np.testing.assert_array_equal(gradient[0, 0], 0)
    assert np.isfinite(gradient).all()


def test_losses_of_bfloat16_are_float32():
    logits = np.zeros((2, 3, 4), jnp.bfloat16)
    mask = np.ones((2, 3), bool)
    for loss, *arrays in (
        (losses.masked_cross_entropy, logits, mask.astype(int), mask),
        (losses.generator_loss, logits[:, 0, 0]),
        (losses.squared_error, logits, logits),
    ):
        assert jax.eval_shape(loss, *arrays).dtype == jnp.float32


def test_log_sum_exp_of_one_pass_is_that_of_two():
    x = np.random.default_rng(0).normal(size=(3, 7, 50), scale=30).astype(np.float32)
    x[0, 0] += 1e4
    x[0, 1] = -np.inf
    x[0, 1, 3] = 2.0
    weight = np.random.default_rng(1).normal(size=(3, 7)).astype(np.float32)
    one, two = (
        jax.value_and_grad(lambda x, f=f: (f(x) * weight).sum())
        for f in (losses.online_log_sum_exp, lambda x: jax.nn.logsumexp(x, axis=-1))
    )
    np.testing.assert_allclose(
        losses.online_log_sum_exp(x), jax.nn.logsumexp(x, axis=-1), rtol=1e-6
    )
    for ours, theirs in zip(jax.jit(one)(x), jax.jit(two)(x), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-7)


def test_cross_entropy_of_ids_with_and_without_a_channel():
    logits = np.array([[1.0, 2.0, 0.5], [3.0, -1.0, 0.0], [3.0, -1.0, 0.0]], np.float32)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    loss = jax.jit(losses.cross_entropy)(logits, np.array([2, 3, -1]))
    np.testing.assert_allclose(loss, [-log_p[0, 2], 0, 0], rtol=1e-6)


def test_every_id_with_a_column_costs_and_no_other_does():
    logits = np.array([[0.5, -1.0, 2.0]] * 5, np.float32)
    costs = jax.jit(losses.cross_entropy)(logits, np.array([-1, 0, 1, 2, 3]))
    log_p = logits[0] - np.log(np.exp(logits[0]).sum())
    np.testing.assert_allclose(costs, [0, *-log_p, 0], rtol=1e-5)
