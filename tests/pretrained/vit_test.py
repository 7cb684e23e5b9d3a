"""A ViT file as AugReg wrote them, made up, into stage II's image encoder."""

import functools

import numpy as np
import pytest
import scipy.ndimage

from fsq_jax.formats import weights_file
from fsq_jax.models.uvim_lm import CodeLanguageModel
from fsq_jax.pretrained import initialize, vit
from fsq_jax.stages.stage import TrainState
from tests.tiny import random_variables

MODEL = CodeLanguageModel(
    vocab_size=9,
    num_tokens=4,
    patch=4,
    width=16,
    encoder_depth=2,
    decoder_depth=1,
    num_heads=2,
    mlp_dim=32,
)
RNG = np.random.default_rng(0)


@functools.cache
def ours():
    image = np.zeros((1, 12, 12, 3), np.float32)  # 3 x 3 patches
    return random_variables(MODEL, image, np.zeros((1, 4), np.int32))["params"]


def file(folder, positions=5, **changes):
    """A ViT of `positions` tokens in the names of the Flax before Linen; None removes an array."""
    sub = {
        "LayerNorm_1": "LayerNorm_2",
        "MlpBlock_0": "MlpBlock_3",
        "MultiHeadDotProductAttention_0": "MultiHeadDotProductAttention_1",
    }
    arrays = {
        "/".join(["Transformer", *(sub.get(p, p) for p in name.split("/"))]): RNG.normal(
            size=x.shape
        ).astype(np.float32)
        for name, x in weights_file.flatten(ours()["encoder"]).items()
    }
    more = {
        "embedding/kernel": (4, 4, 3, 16),
        "embedding/bias": (16,),
        "cls": (1, 1, 16),
        "Transformer/posembed_input/pos_embedding": (1, positions, 16),
        "pre_logits/kernel": (16, 16),
        "head/kernel": (16, 7),
        "head/bias": (7,),
    }
    arrays |= {name: RNG.normal(size=shape).astype(np.float32) for name, shape in more.items()}
    arrays = {k: v for k, v in (arrays | changes).items() if v is not None}
    np.savez(folder / "vit.npz", **arrays)
    return folder / "vit.npz", arrays


def test_the_image_encoder_is_replaced_and_nothing_else(tmp_path):
    path, arrays = file(tmp_path)
    state = TrainState(0, ours(), None, ours(), {})
    start = initialize.load(state, str(path))
    flat = {name.removeprefix("params/"): array for name, array in start.taken.items()}
    theirs = ("encoder/", "EmbedPatches/", "pos_embedding_encoder")
    before = weights_file.flatten(ours())
    assert set(flat) == {name for name in before if name.startswith(theirs)}
    assert {name.removeprefix("params/") for name in start.new} == set(before) - set(flat)
    assert not start.left_over
    np.testing.assert_array_equal(flat["EmbedPatches/bias"], arrays["embedding/bias"])
    block = "encoderblock_1"
    for name, old in [
        ("LayerNorm_1/scale", "LayerNorm_2/scale"),
        ("MlpBlock_0/Dense_1/kernel", "MlpBlock_3/Dense_1/kernel"),
        ("MultiHeadDotProductAttention_0/out/kernel", "MultiHeadDotProductAttention_1/out/kernel"),
    ]:
        np.testing.assert_array_equal(
            flat[f"encoder/{block}/{name}"], arrays[f"Transformer/{block}/{old}"]
        )
    # Without the class token's row 0; corners stay where they are, the middle is the mean.
    positions = arrays["Transformer/posembed_input/pos_embedding"][0, 1:]
    grid = flat["pos_embedding_encoder"].reshape(3, 3, 16)
    np.testing.assert_allclose(grid[::2, ::2].reshape(4, 16), positions, atol=1e-6)
    np.testing.assert_allclose(grid[1, 1], positions.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(grid[0, 1], positions[:2].mean(axis=0), atol=1e-6)


def test_numbers_count_within_their_kind():
    names = ("LayerNorm_0", "Attention_1", "LayerNorm_2", "Mlp_3", "a_10", "a_9", "LayerNorm7")
    assert vit._renumbered({"block": {name: i for i, name in enumerate(names)}}) == {
        "block": {
            "LayerNorm_0": 0,
            "Attention_0": 1,
            "LayerNorm_1": 2,
            "Mlp_0": 3,
            "a_1": 4,
            "a_0": 5,
            "LayerNorm7": 6,
        }
    }


def test_positions_are_interpolated_between_the_grids():
    # Linear in both axes: a plane stays one, with its corners on the new corners.
    y, x = np.mgrid[:14, :14] / 13
    plane = np.stack([y, x, 1 + y - 2 * x], axis=-1).reshape(1, 196, 3)
    y, x = np.mgrid[:32, :32] / 31
    expected = np.stack([y, x, 1 + y - 2 * x], axis=-1).reshape(1, 1024, 3)
    np.testing.assert_allclose(vit.resize_positions(plane, 1024), expected, atol=1e-6)
    np.testing.assert_array_equal(vit.resize_positions(plane, 196), plane.astype(np.float32))
    rough = RNG.normal(size=(1, 196, 5))
    zoomed = scipy.ndimage.zoom(rough.reshape(14, 14, 5), (32 / 14, 32 / 14, 1), order=1)
    np.testing.assert_allclose(
        vit.resize_positions(rough, 1024), zoomed.reshape(1, 1024, 5), atol=1e-6
    )
    with_class = np.concatenate([np.full((1, 1, 3), 9.0), plane], axis=1)
    np.testing.assert_allclose(vit.resize_positions(with_class, 1024), expected, atol=1e-6)
    for tokens, patches in ((198, 196), (196, 195)):
        with pytest.raises(ValueError, match=f"{tokens} tokens and {patches} patches"):
            vit.resize_positions(np.zeros((1, tokens, 3)), patches)


def test_files_that_do_not_fit_get_one_sentence_each(tmp_path):
    norm = "Transformer/encoder_norm/scale"
    position = "Transformer/posembed_input/pos_embedding"
    kernel = np.zeros((8, 8, 3, 16), np.float32)
    for changes, message in [
        ({"embedding/kernel": kernel}, r"EmbedPatches/kernel has .*\(8, 8, .*\(4, 4, 3, 16\)"),
        ({norm: None}, "lacks 1 arrays, such as 'encoder/encoder_norm/scale'"),
        ({"embedding/kernel": None, "embedding/bias": None}, "Nothing of .* holds 39 arrays"),
        ({position: None}, "lacks the positions .1, tokens, width. of a ViT"),
        ({position: np.zeros((1, 7, 16), np.float32)}, "7 tokens and 9 patches"),
        ({position: np.zeros((1, 4, 8), np.float32)}, r"pos_embedding_encoder has .*\(1, 9, 8\)"),
    ]:
        path, _ = file(tmp_path, **changes)
        with pytest.raises(ValueError, match=message) as error:
            initialize.load(TrainState(0, ours(), None, ours(), {}), str(path))
        assert "\n" not in str(error.value) and str(path) in str(error.value)
