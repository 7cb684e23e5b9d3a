import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fsq_jax.sampling import masked

CODES, CLASSES = 12, 3
MASK = CODES + CLASSES
MASKED_AFTER = {  # of 256 tokens, the reference's float32 arithmetic
    8: [251, 236, 212, 181, 142, 97, 49, 1],
    12: [253, 247, 236, 221, 203, 181, 155, 127, 97, 66, 33, 1],
    16: [254, 251, 244, 236, 225, 212, 197, 181, 162, 142, 120, 97, 74, 49, 25, 1],
}
SCHEDULES = ["cosine", "linear", "square", "cubic", "sqrt", "pow4", "arccos", "log", "exp"]


@jax.jit
def _logits_fn(tokens_BL):
    """Logits that depend on the position, the class and all other tokens of the example."""
    table = jax.random.normal(jax.random.key(7), (tokens_BL.shape[1], CODES))
    codes_BL = jax.nn.one_hot(tokens_BL % CODES, CODES).mean(axis=1, keepdims=True)
    return table + codes_BL + 0.1 * tokens_BL[:, :1, None] * jnp.arange(CODES)


@functools.partial(jax.jit, static_argnames=("num_steps", "schedule", "temperature"))
def _compiled(tokens_BL, key, **options):
    return masked.decode(_logits_fn, tokens_BL, key, mask_id=MASK, return_steps=True, **options)


def _decode(tokens_BL, seed=0, num_steps=6, schedule="cosine", temperature=1.0):
    """(tokens, what each step sampled, what it masked again)."""
    options = dict(num_steps=num_steps, schedule=schedule, temperature=temperature)
    return jax.tree.map(np.asarray, _compiled(tokens_BL, jax.random.key(seed), **options))


random_mask = jax.jit(masked.random_mask, static_argnums=(1, 2), static_argnames="min_ratio")


@functools.cache
def _start(batch=4, length=16):
    start = lambda: masked.initial_tokens(np.arange(batch) % CLASSES, length, CODES, CLASSES)  # noqa: E731
    return np.asarray(jax.jit(start)())


@pytest.mark.parametrize("num_steps", MASKED_AFTER)
def test_masked_after_each_step_is_the_reference_table(num_steps):
    _, _, masked_TBL = _decode(_start(2, 256), num_steps=num_steps)
    for b in range(2):
        np.testing.assert_array_equal(masked_TBL[:, b].sum(-1), MASKED_AFTER[num_steps])


@pytest.mark.parametrize("schedule", ["cosine", "cubic", "log"])
def test_every_token_ends_as_a_code(schedule):
    tokens, _, _ = _decode(_start(), schedule=schedule)
    assert np.all((tokens[:, 1:] >= 0) & (tokens[:, 1:] < CODES))
    np.testing.assert_array_equal(tokens[:, 0], _start()[:, 0])


def test_masks_only_shrink_and_sampled_tokens_stay():
    tokens, sampled, again = _decode(_start())
    for t in range(5):
        assert not np.any(again[t + 1] & ~again[t])
        np.testing.assert_array_equal(
            np.where(again[t], 0, sampled[t + 1]), np.where(again[t], 0, sampled[t])
        )
    np.testing.assert_array_equal(tokens, sampled[-1])


def test_editing_changes_only_what_is_not_known():
    rng = np.random.default_rng(0)
    image = rng.integers(0, CODES, (4, 16))
    known = rng.random((4, 16)) < np.array([[0.1], [0.5], [0.9], [1.0]])
    known[3] = True
    start = np.asarray(jax.jit(masked.with_known)(_start(), image, known))
    np.testing.assert_array_equal(start[:, 0], _start()[:, 0])
    tokens, _, again = _decode(start)
    np.testing.assert_array_equal(np.where(known, tokens[:, 1:], 0), np.where(known, image, 0))
    assert np.all((tokens[:, 1:] >= 0) & (tokens[:, 1:] < CODES))
    assert not np.any(again[:, :, 1:] & known) and not again[:, :, 0].any()
    # N is an example's own: what is masked follows the number unknown in it.
    unknown = (~known).sum(1)
    share = masked.mask_ratio("cosine", np.arange(1, 7) / 6)
    left = unknown
    for t in range(6):
        wanted = np.maximum(1, np.minimum(left - 1, np.floor(unknown * share[t])))
        left = np.where(unknown > 0, wanted, 0)
        np.testing.assert_array_equal(again[t].sum(-1), left)


def test_certain_logits_decode_to_their_tokens():
    target = np.random.default_rng(1).integers(0, CODES, (3, 16))

    def certain(tokens_BL):
        del tokens_BL
        return jnp.pad(1e4 * jax.nn.one_hot(target, CODES), ((0, 0), (1, 0), (0, 0)))

    decode = jax.jit(lambda tokens, key: masked.decode(certain, tokens, key, mask_id=MASK))
    tokens = decode(_start(3), jax.random.key(0))
    np.testing.assert_array_equal(np.asarray(tokens)[:, 1:], target)


def test_result_follows_the_key():
    a, b, c = (_decode(_start(), seed)[0] for seed in (0, 0, 1))
    np.testing.assert_array_equal(a, b)
    assert np.any(a != c)


def test_low_temperature_takes_the_likeliest():
    tokens, _, _ = _decode(_start(), num_steps=1, temperature=1e-4)
    logits = np.asarray(_logits_fn(_start()))
    np.testing.assert_array_equal(tokens[:, 1:], logits.argmax(-1)[:, 1:])


def test_sharded_batch_gives_the_tokens_of_one_device():
    if jax.device_count() < 8:
        pytest.skip(f"needs 8 devices, there are {jax.device_count()}")
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.NamedSharding(mesh, jax.P("data"))
    start, key = _start(16), jax.random.key(2)
    guided = masked.guided(_logits_fn, 0.5, MASK)
    decode = jax.jit(lambda t, k: masked.decode(guided, t, k, mask_id=MASK, num_steps=4))
    sharded = decode(jax.device_put(start, sharding), key)
    np.testing.assert_array_equal(sharded, decode(start, key))
    draw = jax.jit(lambda k: masked.random_mask(k, 16, 32), out_shardings=sharding)
    np.testing.assert_array_equal(draw(key), random_mask(key, 16, 32))


def test_guidance_moves_away_from_the_logits_without_a_class():
    tokens = _start()
    calls = []

    def counted(tokens_BL):
        calls.append(tokens_BL.shape)
        return _logits_fn(tokens_BL)

    unguided = np.array(tokens)
    unguided[:, 0] = MASK
    with_class, without = (np.asarray(_logits_fn(x)) for x in (tokens, unguided))
    np.testing.assert_allclose(
        jax.jit(masked.guided(counted, 0.3, MASK))(tokens),
        with_class + 0.3 * (with_class - without),
        atol=1e-5,
    )
    assert calls == [(8, 17)]
    assert masked.guided(counted, 0.0, MASK) is counted
    np.testing.assert_array_equal(
        jax.jit(masked.guided(_logits_fn, np.float32(0), MASK))(tokens), with_class
    )


def test_settings_may_be_of_each_example():
    """Row by row the tokens of a batch in which all examples have that setting."""

    def decoded(guidance, temperature):
        logits_fn = masked.guided(_logits_fn, guidance, MASK)
        options = dict(mask_id=MASK, num_steps=4, choice_temperature=temperature)
        return masked.decode(logits_fn, _start(), jax.random.key(0), **options)

    tokens = lambda *pair: np.asarray(jax.jit(decoded)(*pair))  # noqa: E731
    settings = ((0.5, 9.0, 0.5, 9.0), (0.1, 0.1, 5.0, 5.0))
    mixed = tokens(*np.float32(settings))
    for row, pair in enumerate(zip(*settings, strict=True)):
        np.testing.assert_array_equal(mixed[row], tokens(*pair)[row])
    assert (mixed[1] != tokens(0.5, 0.1)[1]).any() and (mixed[2] != tokens(0.5, 0.1)[2]).any()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules_fall_from_all_to_none(schedule):
    share = masked.mask_ratio(schedule, np.linspace(0, 1, 33))
    assert share.dtype == np.float32
    np.testing.assert_allclose(share[[0, -1]], [1, 1e-6], atol=4e-3)
    assert np.all(np.diff(share) <= 0)
    on_device = jax.jit(lambda ratio: masked.mask_ratio(schedule, ratio))
    np.testing.assert_allclose(on_device(np.linspace(0, 1, 33)), share, atol=1e-5)


@pytest.mark.parametrize("min_ratio,num_tokens", [(0.45, 256), (0.45, 64), (0.0, 16), (0.5, 16)])
def test_random_mask_masks_more_than_the_least_share(min_ratio, num_tokens):
    mask = np.asarray(random_mask(jax.random.key(0), 2000, num_tokens, min_ratio=min_ratio))
    counts = mask.sum(1)
    assert mask.shape == (2000, num_tokens) and mask.dtype == bool
    assert counts.min() > min_ratio * num_tokens and counts.max() <= num_tokens
    assert counts.min() <= min_ratio * num_tokens + 2 and counts.max() >= num_tokens - 1
    np.testing.assert_allclose(mask.mean(0), mask.mean(), atol=0.06)  # no place is preferred


def test_random_mask_follows_the_paper_s_distribution():
    counts = np.sort(np.asarray(random_mask(jax.random.key(1), 4000, 256)).sum(1))
    r_min = 1 - 2 * np.arccos(0.45) / np.pi
    assert abs(r_min - 0.29715) < 1e-5
    r = r_min + (1 - r_min) * (np.arange(4000) + 0.5) / 4000
    expected = np.ceil(np.cos(np.pi / 2 * (1 - r)) * 256)
    assert np.abs(counts - expected).max() < 8


def test_initial_tokens_are_a_class_and_masks():
    np.testing.assert_array_equal(
        masked.initial_tokens([0, 2], 3, CODES, CLASSES), [[12, 15, 15, 15], [14, 15, 15, 15]]
    )


def test_errors_name_the_values():
    with pytest.raises(ValueError, match="'cosinus'"):
        masked.mask_ratio("cosinus", 0.5)
    with pytest.raises(ValueError, match="'pow-1'"):
        masked.mask_ratio("pow-1", 0.5)
    with pytest.raises(ValueError, match=r"0\.\.2, got 0\.\.3"):
        masked.initial_tokens([0, 3], 3, CODES, CLASSES)
    with pytest.raises(ValueError, match="num_steps=0"):
        masked.decode(_logits_fn, _start(), jax.random.key(0), mask_id=MASK, num_steps=0)
    with pytest.raises(ValueError, match="1.0"):
        masked.random_mask(jax.random.key(0), 2, 4, min_ratio=1.0)
