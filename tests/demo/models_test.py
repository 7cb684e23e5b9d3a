"""What the demo's pages do, without Gradio: pictures in, pictures out."""

import numpy as np
import pytest

from fsq_jax import runs
from fsq_jax.demo import models
from fsq_jax.runs import answers
from tests import tiny

# 16 pixels, 4 x 4 tokens of 15 codes: levels 5 and 3.
PICTURE = np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8)


@pytest.fixture(scope="module")
def tokenizer(trained):
    return models.Tokenizer(runs.load(trained.tokenizer))


@pytest.fixture(scope="module")
def maskgit(trained):
    return models.MaskGIT(runs.load(trained.transformer, overrides={"sampling.guidance": 1.0}))


def test_a_picture_is_encoded_and_decoded(tokenizer):
    found = tokenizer.encode(PICTURE)
    assert found.reconstruction.shape == (384, 384, 3) == found.codes.shape
    assert found.indices.shape == (4, 4) and 0 <= found.indices.min() <= found.indices.max() < 15
    # 16 log2(15) = 62.5 bits
    assert found.text.startswith("16 tokens of 15 codes, ")
    assert "8 bytes for 16 x 16 pixels, which are 768 bytes. PSNR " in found.text
    with pytest.raises(ValueError, match="There is no picture"):
        tokenizer.encode(None)


def test_codes_are_painted_where_the_brush_was(tokenizer):
    indices = tokenizer.encode(PICTURE).indices
    mask = np.zeros((384, 384), bool)
    mask[96:192, :96] = True  # row 1, column 0
    painted, codes, decoded = tokenizer.paint(indices, mask, (4, 2))
    assert painted[1, 0] == 14
    painted[1, 0] = indices[1, 0]
    np.testing.assert_array_equal(painted, indices)
    # As the tokenizer decodes these indices; nothing painted is the reconstruction.
    _, _, same = tokenizer.paint(indices, ~mask & mask, (4, 2))
    np.testing.assert_array_equal(same, tokenizer.encode(PICTURE).reconstruction)
    assert (decoded != same).any() and codes.shape == decoded.shape
    assert tokenizer.code((4, 2)).shape == (16, 32, 3)
    with pytest.raises(ValueError, match="There are no codes yet"):
        tokenizer.paint(None, mask, (4, 2))


def test_held_out_pictures_are_there_or_not(tokenizer, trained):
    first, second, again = (tokenizer.held_out(i) for i in (0, 1, 20))
    assert first.shape == (384, 384, 3) and (first != second).any()
    np.testing.assert_array_equal(first, again)  # of 20
    gone = runs.load(trained.tokenizer, overrides={"data.source": "folder:/no/such/folder"})
    assert models.Tokenizer(gone).held_out(0) is None


def test_steps_end_in_the_sample(maskgit):
    """With the settings of the run, the last step's tokens are those of `sample`."""
    labels = np.array([0, 5, 5])
    run = maskgit.predictor
    tokens, again = answers.decoding_steps(run, labels, seed=3)
    steps = run.facts.sampling["num_steps"]
    assert tokens.shape == again.shape == (3, steps, 16)
    assert not again[:, -1].any()
    assert (np.diff(again.sum(-1), axis=1) < 0).all()  # every step fills something in
    kept = ~again[:, :-1]
    np.testing.assert_array_equal(tokens[:, :-1][kept], tokens[:, 1:][kept])
    settings = dict(guidance=1.0, choice_temperature=run.facts.sampling["choice_temperature"])
    same, _ = answers.decoding_steps(run, labels, seed=3, **settings)
    np.testing.assert_array_equal(tokens, same)
    other, _ = answers.decoding_steps(run, labels, seed=3, **settings | {"guidance": 30.0})
    assert (tokens != other).any()


def test_samples_are_shown_step_by_step(maskgit):
    names = maskgit.class_names
    sampler = models.Sampler(num_steps=3, choice_temperature=2.0, guidance=0.5, seed=0)
    shown = list(maskgit.draw([names[2], names[7]], 2, sampler))
    assert len(shown) == 3
    images, film, text = shown[-1]
    assert text == "Step 3 of 3: 0 of 16 tokens are open."
    assert images.shape == shown[0][0].shape and film.shape == (4 * 18 + 2, 3 * 18 + 2, 3)
    tokens, _ = answers.decoding_steps(
        answers.with_overrides(maskgit.predictor, {"sampling.num_steps": 3}),
        np.array([2, 2, 7, 7]),
        guidance=0.5,
        choice_temperature=2.0,
    )
    last = answers.decode(maskgit.predictor, tokens[:, -1])
    film = film[2:, 2:].reshape(4, 18, 3, 18, 3)[:, :16, 2, :16]
    np.testing.assert_array_equal(film, np.uint8(last * 255 + 0.5))
    with pytest.raises(ValueError, match="Choose a class."):
        maskgit.draw([], 2, sampler)


def test_completions_keep_what_was_not_brushed(maskgit):
    sampler = models.Sampler(num_steps=2, choice_temperature=2.0, guidance=0.0, seed=0)
    mask = np.zeros((20, 20), bool)
    mask[:10] = True
    picture = PICTURE[:, :20]
    assert len(list(maskgit.complete(picture, mask, maskgit.class_names[0], 2, sampler))) == 2
    image = maskgit.seen(picture)
    known = answers.known_tokens(maskgit.predictor, image, np.arange(16)[:, None] < [8] * 16)
    assert known["known"].reshape(4, 4).tolist() == [[False] * 4] * 2 + [[True] * 4] * 2
    tokens, _ = answers.decoding_steps(maskgit.predictor, np.array([0, 9]), known=known)
    assert (tokens[..., 8:] == known["tokens"][8:]).all()
    with pytest.raises(ValueError, match="Nothing is painted over"):
        next(maskgit.complete(picture, ~mask & mask, maskgit.class_names[0], 2, sampler))


def test_labels_of_a_picture(tmp_path):
    base = tiny.untrained(tiny.label_coder(task="panoptic"), tmp_path / "base")
    lm = tiny.untrained(tiny.code_model(base, task="panoptic"), tmp_path / "lm")
    seen, said = models.UViM(runs.load(lm)).predict(PICTURE)
    assert seen.shape == said.shape == (384, 384, 3)
    with pytest.raises(ValueError, match="Stage I encodes labels"):
        models.UViM(runs.load(base)).predict(PICTURE)
