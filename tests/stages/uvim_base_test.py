"""UViM's stage I learns the labels of every task with every quantizer, and codes them alike."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks import train_step
from fsq_jax.models.vit import unpatchify
from fsq_jax.runs.frozen import make_stage
from fsq_jax.stages import uvim_base
from tests import tiny


@functools.cache
def begin(task, quantizer):
    """(first state, a batch of four)."""
    config = tiny.label_coder(task=task, quantizer=quantizer)
    stage = make_stage(config)
    batch = train_step.random_batch(config, stage, tokens=False, size=4)
    # Labels that can be learned: the left half is one thing, the right half another.
    if "depth" in batch:
        batch["depth"] = np.where(np.arange(8) < 4, 2.0, 7.0) * np.ones((4, 8, 8), np.float32)
    return tiny.first_state(stage, batch), batch


def start(config):
    """(stage, first state, a batch of four, compiled update)."""
    stage = make_stage(config)
    return stage, *begin(config.task.name, config.quantizer.name), jax.jit(stage.update)


def equal(ours, theirs):
    pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


@pytest.mark.parametrize(
    "task, quantizer, name, shape",
    [
        ("depth", "fsq", "depth", (4, 8, 8)),
        ("colorization", "vq", "image", (4, 8, 8, 3)),
        ("panoptic", "vq_ema", "segments", (4, 8, 8, 2)),
    ],
)
def test_it_learns_one_batch(task, quantizer, name, shape):
    config = tiny.label_coder({"optim.learning_rate": 3e-2, "steps": 100}, task, quantizer)
    stage, state, batch, update = start(config)
    first, losses = state, []
    for _ in range(15):
        state, metrics = update(state, batch, jax.random.key(0))
        losses.append(float(metrics["task"]))
    assert np.mean(losses[-3:]) < 0.8 * losses[0] and metrics["gradient_norm"] > 0
    assert not equal(first.params, state.params) and tiny.types(first) == tiny.types(state)
    assert equal(state.ema_params, state.params)  # no average: the weights themselves
    assert bool(jax.tree.leaves(state.model_state)) == (quantizer == "vq_ema")
    if quantizer == "vq_ema":
        assert not equal(first.model_state, state.model_state)
    predict = jax.jit(lambda *a: {name: fn(*a) for name, fn in stage.predict.items()})(
        state, batch, None
    )
    assert list(predict["prediction"]) == [name] and predict["prediction"][name].shape == shape
    indices = predict["indices"]["indices"]
    assert indices.shape == (4, 4) and 0 <= indices.min()
    assert indices.max() < stage.facts.codebook_size and stage.facts.downsampling == 4
    picture = predict["preview"]["prediction"]
    assert picture.shape == (4, 8, 24, 3) and picture.min() >= 0 and picture.max() <= 1
    if task == "colorization":
        np.testing.assert_array_equal(picture[:, :, 16:], batch["image"])
        np.testing.assert_array_equal(picture[:, :, 8:16], predict["prediction"]["image"])


def test_the_loss_is_that_of_whole_images():
    config = tiny.label_coder({"model.code_dropout": "none"}, "panoptic")
    stage, state, batch, _ = start(config)
    coder = uvim_base.make_coder(config)
    # Heads are zero at first, so that every class is as likely as any other.
    params = jax.tree.map(
        lambda x: x + 0.1 * np.sin(np.arange(x.size, dtype=np.float32)).reshape(x.shape),
        state.params,
    )

    @jax.jit
    def both(state):
        _, metrics = stage.update(state, batch, jax.random.key(0))
        return metrics["task"], expected(state.params)  # no more, so that no more is compiled

    def expected(params):
        labels, context = coder.task.to_inputs(batch)
        logits, _ = coder.model.apply({"params": params}, coder.patches(labels), context)
        images = {k: unpatchify(x.swapaxes(2, 3), 2, 8, 8) for k, x in logits.items()}
        return coder.task.loss(images, labels).mean()

    np.testing.assert_allclose(*both(state.replace(params=params)), rtol=1e-4)


def test_codes_are_those_of_no_dropout_and_no_key():
    changes = {"model.code_dropout": "none"}
    stage, state, batch, _ = start(tiny.label_coder(quantizer="vq_ema"))
    undropped = make_stage(tiny.label_coder(changes, quantizer="vq_ema"))
    first, second, theirs = jax.jit(
        lambda: (
            stage.predict["indices"](state, batch, jax.random.key(0)),
            stage.predict["indices"](state, batch, jax.random.key(1)),
            undropped.predict["indices"](state, batch, jax.random.key(0)),
        )
    )()
    np.testing.assert_array_equal(first["indices"], second["indices"])
    np.testing.assert_array_equal(first["indices"], theirs["indices"])


@pytest.mark.parametrize("threshold", [0.1, 0.0])
def test_idle_words_are_split_unless_that_is_off(threshold):
    config = tiny.label_coder({"quantizer.split_threshold": threshold}, quantizer="vq_ema")
    _, state, batch, _ = start(config)
    coder = uvim_base.make_coder(config)
    # Word 3 is as good as dead, and word 0 is busy.
    counts = jnp.full(16, 5.0).at[3].set(1e-3).at[0].set(100.0)
    (codebook,) = state.model_state["codebook_state"].values()
    codebook = {"counts": counts, "dictionary": codebook["dictionary"] * counts[:, None]}

    @jax.jit
    def encode(params, codebook, key):
        labels, context = coder.task.to_inputs(batch)
        return coder.model.apply(
            {"params": params, "codebook_state": {"quantizer": codebook}},
            coder.patches(labels),
            context,
            train=True,
            method="encode",
            rngs={"codebook": key},
            mutable="codebook_state",
        )[1]["codebook_state"]["quantizer"]["counts"]

    revived = encode(state.params, codebook, jax.random.key(0))
    assert (revived.min() >= 0.1) == (threshold > 0)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model.patch": 3}, "data.size=8 is not a multiple of patch=3"),
        ({"model.code_side": 3}, "and of code_side=3"),
    ],
)
def test_images_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        make_stage(tiny.label_coder(changes))
