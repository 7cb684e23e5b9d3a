"""Masked decoding with models whose right answer is known at every step, nothing compiled.

The noise is taken in hand: what a step draws is replaced by numbers that the test knows.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fsq_jax.sampling import masked

CODES, CLASSES, TOKENS = 4, 2, 8
MASK = CODES + CLASSES


def start():
    return np.asarray(masked.initial_tokens(np.zeros(2, int), TOKENS, CODES, CLASSES))


def sure_of(strength_S, code_S):
    """Logits [B,S+1,K] that favour a code at each place, the more the larger the strength."""

    def logits_fn(tokens_BL):
        favoured_SK = strength_S[:, None] * np.eye(CODES)[code_S]
        logits_LK = np.concatenate([np.zeros((1, CODES)), favoured_SK])
        return np.broadcast_to(logits_LK, (len(tokens_BL), *logits_LK.shape))

    return logits_fn


class Noise:
    """Stands in for the draws of the sampler: the likeliest token, and noise of the test's own."""

    def __init__(self, monkeypatch, gumbel_TL=None):
        self.keys, self.choice_keys = [], []
        self.gumbel_TL = gumbel_TL
        monkeypatch.setattr(jax.random, "categorical", self.categorical)
        monkeypatch.setattr(jax.random, "gumbel", self.gumbel)
        monkeypatch.setattr(jax.lax, "scan", self.scan)

    def categorical(self, key, logits, *args, **kwargs):
        self.keys.append(tuple(np.ravel(jax.random.key_data(key)).tolist()))
        return np.argmax(logits, axis=-1)

    def gumbel(self, key, shape, *args, **kwargs):
        self.choice_keys.append(tuple(np.ravel(jax.random.key_data(key)).tolist()))
        if self.gumbel_TL is None:
            return np.zeros(shape)
        return np.broadcast_to(self.gumbel_TL[len(self.choice_keys) - 1], shape)

    def scan(self, step, carry, xs):
        """A loop in Python."""
        outputs, xs = [], jax.tree.map(np.asarray, xs)
        for t in range(len(xs[0])):
            carry, out = step(carry, jax.tree.map(lambda x: x[t], xs))  # noqa: B023
            outputs.append(out)
        if outputs[0] is None:
            return carry, None
        return carry, jax.tree.map(lambda *leaves: np.stack(leaves), *outputs)


CODE_S = np.array([3, 1, 0, 2, 3, 2, 1, 0])
STRENGTH_S = np.array([3.0, 9.0, 1.0, 5.0, 7.0, 2.0, 8.0, 4.0])  # no two alike


def decode(logits_fn, tokens, **options):
    found = masked.decode(
        logits_fn,
        tokens,
        jax.random.key(0),
        mask_id=MASK,
        return_steps=True,
        **{"num_steps": 4, "schedule": "linear", "choice_temperature": 0.0} | options,
    )
    return jax.tree.map(np.asarray, found)


def test_the_surest_tokens_stay_first(monkeypatch):
    Noise(monkeypatch)
    tokens, sampled, again = decode(sure_of(STRENGTH_S, CODE_S), start())
    np.testing.assert_array_equal(tokens[0, 1:], CODE_S)
    # A linear schedule leaves 6, 4 and 2 of 8 masked: the least sure ones.
    ranks = np.argsort(np.argsort(STRENGTH_S))
    for t, masked_now in enumerate((6, 4, 2, 1)):
        np.testing.assert_array_equal(again[t, 0, 1:], ranks < masked_now)
        np.testing.assert_array_equal(sampled[t, 0, 1:], CODE_S)
    assert not again[:, :, 0].any()


def test_every_step_fills_something_in(monkeypatch):
    """Of eight tokens in eight steps; the cosine alone would leave 7, 7, 6, 5, 4, 3, 1, 0."""
    Noise(monkeypatch)
    _, _, again = decode(sure_of(STRENGTH_S, CODE_S), start(), num_steps=8, schedule="cosine")
    np.testing.assert_array_equal(again[:, 0].sum(1), [7, 6, 5, 4, 3, 2, 1, 1])


def test_the_model_reads_what_stayed_and_masks_elsewhere(monkeypatch):
    Noise(monkeypatch)
    seen = []

    def logits_fn(tokens_BL):
        seen.append(np.asarray(tokens_BL)[0, 1:])
        return sure_of(STRENGTH_S, CODE_S)(tokens_BL)

    decode(logits_fn, start())
    ranks = np.argsort(np.argsort(STRENGTH_S))
    for now, masked_before in zip(seen, (8, 6, 4, 2), strict=True):
        np.testing.assert_array_equal(now, np.where(ranks < masked_before, MASK, CODE_S))


def masked_by_hand(log_p_S, gumbel_TL, noise_T, schedule):
    """What is masked after each step, bool [T,S]: the tokens of the least log p + noise."""
    is_masked, share_T, masked_TS = np.ones(TOKENS, bool), [], []
    steps = len(gumbel_TL)
    share_T = masked.mask_ratio(schedule, np.arange(1, steps + 1) / steps)
    for gumbel_L, noise, share in zip(gumbel_TL, noise_T, share_T, strict=True):
        confidence_S = np.where(is_masked, log_p_S + noise * gumbel_L[1:], np.inf)
        count = max(1, min(is_masked.sum() - 1, int(np.floor(TOKENS * share))))
        is_masked = np.argsort(np.argsort(confidence_S)) < count
        masked_TS.append(is_masked)
    return np.stack(masked_TS)


@pytest.mark.parametrize("temperature, schedule", [(4.5, "linear"), (2.0, "cosine")])
def test_confidence_is_log_probability_and_noise_that_falls_to_nothing(
    monkeypatch, temperature, schedule
):
    """log p + temperature x (1 - ratio) x Gumbel, at each step of four."""
    # In place of Gumbel noise: of the size of the differences between the tokens.
    gumbel_TL = np.random.default_rng(0).uniform(-0.4, 0.4, (4, TOKENS + 1))
    Noise(monkeypatch, gumbel_TL)
    _, _, again = decode(
        sure_of(STRENGTH_S / 3, CODE_S), start(), choice_temperature=temperature, schedule=schedule
    )
    log_p_S = STRENGTH_S / 3 - np.log(np.exp(STRENGTH_S / 3) + CODES - 1)
    falling_T = temperature * (1 - np.arange(1, 5) / 4)
    expected = masked_by_hand(log_p_S, gumbel_TL, falling_T, schedule)
    np.testing.assert_array_equal(again[:, 0, 1:], expected)
    # Another course of the noise, or another measure, would have shown.
    rising_T, ones_T = falling_T[::-1], np.full(4, temperature)
    for log_p, noise_T in (
        (log_p_S, rising_T),
        (log_p_S, ones_T),
        (log_p_S, -falling_T),
        (-log_p_S, falling_T),
        (log_p_S, 0 * ones_T),
        (log_p_S, falling_T * 4),
    ):
        assert (masked_by_hand(log_p, gumbel_TL, noise_T, schedule) != expected).any()


def test_temperature_divides_logits_before_confidence(monkeypatch):
    """Places 0 and 1 change their order: at temperature 1 a sure rest hides a doubtful pair."""
    Noise(monkeypatch)
    logits_SK = np.zeros((2, CODES))
    logits_SK[0] = [4.0, 3.0, -20.0, -20.0]  # one of two
    logits_SK[1] = [4.0, 2.0, 2.0, 2.0]  # one, or any of three others

    def logits_fn(tokens_BL):
        return np.concatenate([np.zeros((1, CODES)), logits_SK])[None]

    tokens = masked.initial_tokens([0], 2, CODES, CLASSES)
    for temperature in (1.0, 4.0):
        _, _, again = decode(logits_fn, tokens, num_steps=2, temperature=temperature)
        warm = logits_SK / temperature
        log_p = warm[:, 0] - np.log(np.exp(warm).sum(1))
        np.testing.assert_array_equal(again[0, 0, 1:], np.argsort(np.argsort(log_p)) < 1)


def test_known_tokens_stay_whatever_the_model_thinks(monkeypatch):
    Noise(monkeypatch)
    known_S = np.array([1, 0, 1, 0, 0, 1, 0, 0], bool)
    image_S = (CODE_S + 1) % CODES
    tokens = masked.with_known(start(), image_S[None], known_S[None])
    tokens, sampled, again = decode(sure_of(-STRENGTH_S, CODE_S), tokens, num_steps=3)
    for values in (tokens, *sampled):
        np.testing.assert_array_equal(values[0, 1:][known_S], image_S[known_S])
    assert not again[:, 0, 1:][:, known_S].any()
    # 5 are unknown: floor(5 x 2/3) and floor(5 x 1/3) stay masked.
    np.testing.assert_array_equal(again[:, 0].sum(1), [3, 1, 1])


def test_every_step_draws_with_keys_of_its_own(monkeypatch):
    noise = Noise(monkeypatch)
    decode(sure_of(STRENGTH_S, CODE_S), start(), num_steps=5)
    keys = noise.keys + noise.choice_keys
    assert len(keys) == 10 and len(set(keys)) == 10


def test_tokens_are_drawn_from_the_softmax():
    """Of one place, over many examples."""
    logits_K = np.array([0.0, 1.0, 2.0, -1.0])

    def logits_fn(tokens_BL):
        return np.broadcast_to(logits_K, (*tokens_BL.shape, CODES))

    tokens = masked.initial_tokens(np.zeros(4000, int), 1, CODES, CLASSES)
    for temperature in (1.0, 0.5):
        drawn, sampled, _ = decode(logits_fn, tokens, num_steps=1, temperature=temperature)
        share = np.bincount(drawn[:, 1], minlength=CODES) / 4000
        expected = np.exp(logits_K / temperature) / np.exp(logits_K / temperature).sum()
        np.testing.assert_allclose(share, expected, atol=5 * 0.5 / 4000**0.5)


@pytest.mark.parametrize("strength", [0.0, 0.5, 3.0])
def test_guidance_decides_for_what_the_class_adds(monkeypatch, strength):
    """The model alone wants code 0, the class adds to code 1: from some strength on it wins."""
    Noise(monkeypatch)
    classes = []

    def logits_fn(tokens_BL):
        class_B = np.asarray(tokens_BL)[:, 0]
        classes.append(class_B)
        of_class = np.where((class_B == CODES)[:, None, None], [0.0, 1.5, 0.0, 0.0], 0.0)
        return np.broadcast_to([2.0, 0.0, 0.0, -9.0] + of_class, (*tokens_BL.shape, CODES))

    tokens, _, _ = decode(masked.guided(logits_fn, strength, MASK), start())
    # 1.5 (1 + strength) against 2.
    assert set(tokens[:, 1:].ravel().tolist()) == {int(1.5 * (1 + strength) > 2)}
    expected = [CODES, MASK] * 2 if strength else [CODES] * 2
    assert all(seen.tolist() == expected for seen in classes)


def test_a_class_token_is_no_code_and_no_mask():
    tokens = np.asarray(masked.initial_tokens(np.arange(CLASSES), TOKENS, CODES, CLASSES))
    np.testing.assert_array_equal(tokens[:, 0], CODES + np.arange(CLASSES))
    assert (tokens[:, 1:] == MASK).all()
    with pytest.raises(ValueError, match="Labels are in 0..1, got -1..0"):
        masked.initial_tokens([-1, 0], TOKENS, CODES, CLASSES)


def test_training_masks_as_many_as_the_paper_says(monkeypatch):
    """ceil(cos(pi/2 (1 - r)) S) with r from r_min on, of draws that the test knows (A.4.2)."""
    share_B = np.array([0.0, 0.13, 0.29, 0.41, 0.66, 0.87, 0.99], np.float32)
    drawn, keys = jax.random.uniform, []

    def uniform(key, shape=(), *args, **kwargs):
        keys.append(tuple(np.ravel(jax.random.key_data(key)).tolist()))
        return jnp.asarray(share_B) if shape == share_B.shape else drawn(key, shape)

    monkeypatch.setattr(jax.random, "uniform", uniform)
    mask = masked.random_mask(jax.random.key(0), len(share_B), 50, min_ratio=0.45)
    # 1 - r runs from 0 to 1 - r_min = 2 arccos(0.45) / pi.
    expected = np.ceil(np.cos(share_B * np.arccos(0.45)) * 50)
    np.testing.assert_array_equal(mask.sum(1), expected)
    assert expected[0] == 50 and expected[-1] == 23
    assert len(keys) == len(set(keys)) == 2
