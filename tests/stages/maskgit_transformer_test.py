"""Stage II: what the transformer is given, what it learns, and what its predictions hold."""

import jax
import numpy as np
import pytest

from fsq_jax.runs.frozen import make_stage
from fsq_jax.runtime.workdir import save_config
from fsq_jax.stages import maskgit_transformer
from tests import tiny

CODES, CLASSES, TOKENS = 12, 30, 16


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return tiny.untrained_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    return {
        "image": rng.random((4, 8, 8, 3), np.float32),
        "label": np.array([0, 1, 2, 0], np.int32),
    }


@pytest.fixture(scope="module")
def begun(workdir):
    """(stage, its first state)."""
    stage = make_stage(tiny.transformer(workdir))
    return stage, tiny.first_state(stage, {}).replace(frozen=stage.frozen)


@pytest.fixture(scope="module")
def tokens(begun, batch):
    stage, state = begun
    return jax.jit(stage.predict["tokens"])(state, batch, None)["tokens"]


def test_facts_and_frozen_tokenizer(begun, tokens):
    stage, state = begun
    assert stage.facts.codebook_size == CODES and stage.facts.levels == (4, 3)
    assert stage.facts.grid == 4 and stage.facts.num_classes == CLASSES
    assert len(stage.facts.stage_1) == 16
    assert tokens.shape == (4, TOKENS) and 0 <= tokens.min() and tokens.max() < CODES
    assert state.model_state == {}


def test_it_learns_one_batch(workdir, begun, batch, tokens):
    config = tiny.transformer(
        workdir, {"optim.learning_rate": 1e-2, "model.dropout": 0.0, "model.attention_dropout": 0.0}
    )
    stage, state = make_stage(config), begun[1]
    update, first = jax.jit(stage.update), state
    losses = []
    for _ in range(25):
        state, metrics = update(state, batch, jax.random.key(0))
        losses.append(float(metrics["loss"]))
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.2
    assert metrics["gradient_norm"] > 0 and 0 <= metrics["accuracy"] <= 1
    assert tiny.types(state) == tiny.types(first)
    jax.tree.map(np.testing.assert_array_equal, state.frozen, first.frozen)
    # Tokens from a cache are what the frozen tokenizer makes of the images.
    cached = {"tokens": tokens, "label": batch["label"]}
    loss = jax.jit(lambda b: stage.update(first, b, jax.random.key(1))[1]["loss"])  # and no more
    np.testing.assert_allclose(loss(batch), loss(cached), rtol=1e-5)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_labels_are_dropped_to_the_mask_token(workdir, begun, batch, monkeypatch, share):
    def masked_loss(models, params, tokens_BL, class_B, *_, **__):
        return {"loss": 0.0 * class_B, "accuracy": class_B}  # the metrics are their means

    monkeypatch.setattr(maskgit_transformer, "masked_loss", masked_loss)
    stage = make_stage(tiny.transformer(workdir, {"label_dropping": share}))
    _, metrics = jax.jit(stage.update)(begun[1], batch, jax.random.key(0))
    expected = CODES + CLASSES if share else CODES + batch["label"].mean()
    assert metrics["accuracy"] == expected


def test_loss_reads_masked_tokens_alone(begun, batch, tokens):
    stage, state = begun
    loss = jax.jit(stage.predict["loss"])
    first = loss(state, batch, jax.random.key(0))
    assert first["loss"].shape == first["accuracy"].shape == (4,)
    assert (first["loss"] > 0).all()
    np.testing.assert_array_equal(  # no dropout, so the key draws masks and nothing else
        first["loss"], loss(state, batch, jax.random.key(0))["loss"]
    )
    assert not np.allclose(first["loss"], loss(state, batch, jax.random.key(1))["loss"])


@pytest.fixture(scope="module")
def sample(begun):
    return jax.jit(begun[0].predict["sample"])


def test_samples_are_images_and_tokens_without_masks(begun, sample, batch):
    made = sample(begun[1], {"label": batch["label"]}, jax.random.key(0))
    assert made["image"].shape == (4, 8, 8, 3)
    assert made["image"].min() >= 0 and made["image"].max() <= 1
    assert made["tokens"].shape == (4, TOKENS)
    assert made["tokens"].min() >= 0 and made["tokens"].max() < CODES
    other = sample(begun[1], {"label": batch["label"]}, jax.random.key(1))
    assert (made["tokens"] != other["tokens"]).any()


def test_inpainting_keeps_what_is_known(begun, sample, batch, tokens):
    known = np.random.default_rng(1).random((4, TOKENS)) < 0.5
    request = {"label": batch["label"], "tokens": tokens, "known": known}
    made = sample(begun[1], request, jax.random.key(0))["tokens"]
    np.testing.assert_array_equal(made[known], tokens[known])
    assert (made[~known] != tokens[~known]).any() and made.max() < CODES


def test_bits_and_preview(begun, batch):
    stage, state = begun
    out = jax.jit(stage.predict["bits"])(state, batch, None)
    assert out["bits"].shape == (4,) and (out["num_tokens"] == TOKENS).all()
    # A model that knows nothing yet is near to the log of the size of the codebook.
    np.testing.assert_allclose(out["bits"] / TOKENS, np.log2(CODES), rtol=0.3)
    preview = jax.jit(stage.predict["preview"])(state, batch, jax.random.key(0))
    assert preview["sample"].shape == (4, 8, 8, 3)


def test_abstract_is_the_same_in_shapes(workdir, begun):
    config = tiny.transformer("")
    stage_1 = tiny.tokenizer()
    config.stage_1.model, config.stage_1.quantizer = stage_1.model, stage_1.quantizer
    stage = tiny.stage_of_shapes(config)
    shapes = jax.eval_shape(stage.init, jax.random.key(0), {})
    assert jax.tree.map(np.shape, begun[1].params) == jax.tree.map(np.shape, shapes.params)
    assert jax.tree.map(np.shape, begun[1].frozen) == jax.tree.map(np.shape, stage.frozen)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"stage_1.workdir": ""}, "needs a trained stage I"),
        ({"stage_1.workdir": "no/run"}, "no/run is not a file; expected .* or the workdir"),
        ({"data.size": 9}, "data.size=9 is not a multiple of the 2 pixels"),
        ({"stage_1.fingerprint": "0" * 16}, "trained on stage I 0000000000000000, but"),
    ],
)
def test_tokenizers_that_do_not_fit_are_refused(workdir, changes, message):
    with pytest.raises(ValueError, match=message):
        make_stage(tiny.transformer(workdir, changes))


def test_a_transformer_is_no_tokenizer(tmp_path):
    save_config(str(tmp_path), tiny.transformer("x"))
    with pytest.raises(ValueError, match="one of stage 'maskgit_tokenizer' is needed"):
        make_stage(tiny.transformer(tmp_path))
