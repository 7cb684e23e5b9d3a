"""One update of a batch in four microbatches is the update of the batch, in every stage.

What fades by a step fades once: the discriminator's LeCam averages, UViM's codebook and its
splitting, moving averages of weights, the optimisers' moments.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks import train_step
from fsq_jax import stages
from fsq_jax.runs import frozen
from tests import tiny

ALONE = {"loss.adversarial": 0.0}  # the discriminator's microbatches are FSQ's
NO_DROPOUT = {"model.dropout": 0.0, "model.attention_dropout": 0.0}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return tiny.untrained_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny.untrained(tiny.label_coder(), tmp_path_factory.mktemp("base"))


def busy(state):
    """The state of a run in which LeCam's averages have moved and word 3 is as good as dead."""
    train_only, model_state = dict(state.train_only), dict(state.model_state)
    if "lecam" in train_only:
        train_only["lecam"] = train_only["lecam"].replace(
            real=jnp.float32(0.7), fake=jnp.float32(-0.4)
        )
    if model_state:
        ((name, codebook),) = model_state["codebook_state"].items()
        counts = codebook["counts"].at[3].set(1e-3).at[0].set(60.0)
        dictionary = codebook["dictionary"] * counts[:, None]
        model_state["codebook_state"] = {name: {"counts": counts, "dictionary": dictionary}}
    return state.replace(train_only=train_only, model_state=model_state)


def start(config, reads):
    """(state, eight examples) before an update."""
    stage = stages.make(config, **reads)
    batch = train_step.random_batch(config, stage, tokens=False, size=8)
    return busy(tiny.first_state(stage, batch).replace(frozen=stage.frozen)), batch


def update(config, reads, accumulate, state, batch):
    """(state after, metrics) of one update."""
    config.accumulate = accumulate
    stage = stages.make(config, **reads)
    after, metrics = jax.jit(stage.update)(state, batch, jax.random.key(1))
    return after, {name: float(value) for name, value in metrics.items()}


def close(ours, theirs, **tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), ours, theirs)


RESEEDED = {
    "quantizer.momentum": 0.8,
    "quantizer.split_threshold": 0.0,
    "quantizer.reseed_threshold": 6.0,
}
CASES = {
    "fsq": lambda _: tiny.tokenizer({"loss.lecam": 0.1, "loss.lecam_decay": 0.9}),
    "vq": lambda _: tiny.tokenizer(ALONE | {"quantizer.entropy_group": 2}, "vq"),
    "vq_ema": lambda _: tiny.tokenizer(ALONE | {"quantizer.split_threshold": 0.0}, "vq_ema"),
    "reseeded": lambda _: tiny.tokenizer(ALONE | RESEEDED, "vq_ema"),
    "transformer": lambda get: tiny.transformer(get("tokenizer"), NO_DROPOUT),
    "uvim_base": lambda _: tiny.label_coder({"model.code_dropout": "none"}, "panoptic", "vq_ema"),
    "uvim_lm": lambda get: tiny.code_model(get("base")),
}


@pytest.mark.parametrize("name", CASES)
def test_four_microbatches_are_one_batch(name, request):
    config = CASES[name](request.getfixturevalue)
    reads = frozen.load(config)
    before, batch = start(config, reads)
    whole, metrics = update(config, reads, 1, before, batch)
    parts, in_parts = update(config, reads, 4, before, batch)
    # Of a microbatch's own codes, perplexity is no mean of parts; all that is trained on is.
    own = ("quantizer/perplexity", "quantizer/unused", "quantizer/max_share")
    for metric in metrics.keys() - set(own):
        assert in_parts[metric] == pytest.approx(metrics[metric], rel=2e-4, abs=1e-6), metric
    close(parts.model_state, whole.model_state, rtol=2e-5, atol=1e-5)
    close(parts.train_only, whole.train_only, rtol=1e-5, atol=1e-6)
    # The moments are the gradients, up to factors: Adam's first step itself is but their sign.
    scale = max(float(np.abs(x).max()) for x in jax.tree.leaves(whole.opt_state))
    assert scale > 0
    close(parts.opt_state, whole.opt_state, rtol=2e-3, atol=1e-5 * max(scale, 1e-3))
    decay = config.ema_decay
    trained = parts.params["tokenizer"] if "tokenizer" in parts.params else parts.params
    expected = jax.tree.map(
        lambda old, new: decay * old + (1 - decay) * new, before.ema_params, trained
    )
    close(parts.ema_params, expected, atol=1e-7)
    assert int(parts.step) == 1
    for after in (whole, parts):  # which could fade alike and wrongly
        check_rates(config, before, after, metrics)


def check_rates(config, before, after, metrics):
    """LeCam's averages and a codebook's counts against their rules."""
    if "lecam" in after.train_only:
        old, new = before.train_only["lecam"], after.train_only["lecam"]
        decay = config.loss.lecam_decay
        for side in ("real", "fake"):
            expected = decay * getattr(old, side) + (1 - decay) * metrics[f"{side}_logit"]
            assert float(getattr(new, side)) == pytest.approx(float(expected), rel=1e-5)
    if not after.model_state:
        return
    old, new = (s.model_state["codebook_state"]["quantizer"]["counts"] for s in (before, after))
    if config.quantizer.split_threshold:
        assert old.min() < 0.1 <= new.min()  # word 3 was revived
        return
    if config.quantizer.reseed_threshold:
        share = np.isclose(new, 6.0 / (1 - 0.8)).mean()
        assert 0 < share < 1 and new.min() > 29.9  # the dead were replaced, the others not
        return
    chosen = new - 0.995 * old
    np.testing.assert_allclose(chosen, np.rint(chosen), atol=1e-4)
    assert float(chosen.sum()) == pytest.approx(8 * 16, rel=1e-5)
