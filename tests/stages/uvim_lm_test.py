"""UViM's stage II: it learns the codes of a stage I that stays as it is, and writes its own."""

import jax
import numpy as np
import pytest

from experiments.benchmarks import train_step
from fsq_jax import encode
from fsq_jax.runs import inputs
from fsq_jax.runs.config import resolve_config
from fsq_jax.runs.frozen import load_stage_1, make_stage
from fsq_jax.runtime.workdir import save_config
from tests import tiny


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A stage I whose codes say something of the labels, since its encoder is random."""
    return tiny.untrained(tiny.label_coder(), tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def begun(base):
    """(stage, first state, a batch of four)."""
    config = tiny.code_model(base)
    stage = make_stage(config)
    batch = train_step.random_batch(config, stage, tokens=False, size=4)
    state = tiny.first_state(stage, batch)
    return stage, state.replace(frozen=stage.frozen), batch


@pytest.fixture(scope="module")
def codes(begun):
    """The codes of the batch, which no option of these tests has a say in."""
    stage, state, batch = begun
    return jax.jit(stage.predict["indices"])(state, batch, jax.random.key(0))["indices"]


def test_facts_and_frozen_stage(begun, base, codes):
    stage, _, batch = begun
    assert stage.facts.codebook_size == 12 and stage.facts.levels == (4, 3)
    assert stage.facts.downsampling == 4
    assert stage.recorded["stage_1.fingerprint"] == stage.facts.stage_1
    # The oracle's codes are those that stage I gives, whatever the key: nothing is dropped.
    trained = load_stage_1(base)
    theirs = jax.jit(trained.encode)(trained.variables, batch)
    np.testing.assert_array_equal(codes, theirs)
    assert codes.shape == (4, 4)


def test_it_learns_one_batch_and_reads_a_cache_alike(base, begun, codes):
    config = tiny.code_model(base, {"optim.learning_rate": 1e-2, "steps": 200})
    stage, (_, state, batch) = make_stage(config), begun
    update, first, losses = jax.jit(stage.update), state, []
    cached = {"tokens": codes, "image": batch["image"], "label": batch["label"]}
    loss = jax.jit(stage.predict["loss"])
    ours, theirs = (loss(state, b, None)["loss"] for b in (batch, cached))
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    np.testing.assert_allclose(ours, np.log(13), rtol=1e-4)  # its head is zero
    for _ in range(40):
        state, metrics = update(state, batch, jax.random.key(0))
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.5 * losses[0] and metrics["gradient_norm"] > 0
    assert tiny.types(state) == tiny.types(first)
    jax.tree.map(np.testing.assert_array_equal, state.frozen, first.frozen)
    # What it has learned by heart, it writes: codes, and the depth that they stand for.
    predict = jax.jit(lambda *a: {name: fn(*a) for name, fn in stage.predict.items()})(
        state, batch, jax.random.key(0)
    )
    assert (predict["sample"]["indices"] == codes).mean() > 0.8
    assert predict["loss"]["loss"].shape == (4,) and predict["loss"]["accuracy"].mean() > 0.8
    assert predict["prediction"]["depth"].shape == (4, 8, 8)
    assert predict["preview"]["prediction"].shape == (4, 8, 24, 3)


def test_temperature_makes_codes_differ(base, begun):
    stage = make_stage(tiny.code_model(base, {"sampling.temperature": 1.0}))
    _, state, batch = begun
    sample = jax.jit(stage.predict["sample"])
    first, second = (sample(state, batch, jax.random.key(i))["indices"] for i in (0, 1))
    assert (first != second).any() and first.min() >= 0 and first.max() < 12
    np.testing.assert_array_equal(first, sample(state, batch, jax.random.key(0))["indices"])


def test_abstract_is_the_same_in_shapes(begun):
    stage = tiny.stage_of_shapes(tiny.code_model(""))
    shapes = jax.eval_shape(stage.init, jax.random.key(0), begun[2])
    assert jax.tree.map(np.shape, begun[1].params) == jax.tree.map(np.shape, shapes.params)
    assert jax.tree.map(np.shape, begun[1].frozen) == jax.tree.map(np.shape, stage.frozen)


def test_a_run_on_token_cache_sees_the_same_images_and_codes(base, begun, tmp_path):
    """Each view of the cache is made again: its image's code is the one in the cache."""
    cache = str(tmp_path / "cache")
    encode.encode(base, cache, views=3)
    config = resolve_config(tiny.code_model(base, {"token_cache": cache, "batch_size": 16}))
    stage, state = make_stage(config), begun[1]
    batches, plain = inputs.train_batches(config), config.copy_and_resolve_references()
    batch = next(batches)
    batches.close()
    assert set(batch) == {"image", "tokens", "label", "mask"} and batch["tokens"].shape == (16, 4)
    plain.data.flip = False
    indices, by_image = jax.jit(stage.predict["indices"]), {}
    for flipped in (False, True):
        for views in inputs.eval_batches(plain, inputs.eval_dataset(plain, "train")):
            views = {
                n: v[:, :, ::-1] if flipped and n != "label" and v.ndim > 2 else v
                for n, v in views.items()
            }
            codes = np.asarray(indices(state, views, None)["indices"])
            by_image |= {im.tobytes(): c for im, c in zip(views["image"], codes, strict=True)}
    for image, tokens in zip(batch["image"], batch["tokens"], strict=True):
        np.testing.assert_array_equal(by_image[image.tobytes()], tokens)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"stage_1.workdir": ""}, "needs a trained stage I"),
        (
            {"stage_1.workdir": "no/run"},
            "no/run is not a file; expected .*, or the workdir of a run",
        ),
        ({"data.size": 16}, "of other images .data.size: 8 there, 16 here"),
        ({"task.num_bins": 32}, "another task .* .task.num_bins: 16 there, 32 here"),
        ({"stage_1.fingerprint": "0" * 16}, "trained on stage I 0000000000000000, but"),
        ({"model.patch": 3}, "not a multiple of patch=3"),
    ],
)
def test_stages_that_do_not_fit_are_refused(base, changes, message):
    with pytest.raises(ValueError, match=message):
        make_stage(tiny.code_model(base, changes))


def test_a_cache_of_other_views_is_refused(base, tmp_path):
    encode.encode(base, str(tmp_path))
    changes = {"token_cache": str(tmp_path), "data.min_area": 0.5}
    with pytest.raises(ValueError, match="data.min_area: 1.0 there, 0.5 here"):
        make_stage(tiny.code_model(base, changes))


def test_a_tokenizer_is_no_stage_of_uvim(tmp_path):
    save_config(str(tmp_path), tiny.tokenizer())
    with pytest.raises(
        ValueError, match="stage 'maskgit_tokenizer'; one of stage 'uvim_base' is needed"
    ):
        make_stage(tiny.code_model(tmp_path))
