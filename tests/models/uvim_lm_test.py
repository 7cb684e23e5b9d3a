"""UViM's stage II: the published tree, the reference's answers, causality, the cache."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from configs.uvim_lm import get_config
from fsq_jax.models.uvim_decode import decoding
from fsq_jax.models.uvim_lm import CodeLanguageModel
from fsq_jax.sampling import autoregressive
from tests.tiny import random_variables

MODEL = CodeLanguageModel(
    vocab_size=9,
    num_tokens=6,
    patch=4,
    width=16,
    encoder_depth=1,
    decoder_depth=2,
    num_heads=2,
    mlp_dim=32,
)
RNG = np.random.default_rng(0)
APPLY = jax.jit(MODEL.apply)
IMAGE = RNG.uniform(-1, 1, (2, 8, 12, 3)).astype(np.float32)
CODES = RNG.integers(0, 8, (2, 6)).astype(np.int32)


@functools.cache
def drawn():
    return random_variables(MODEL, IMAGE, CODES)


def test_paper_size_has_the_published_tree():
    model = CodeLanguageModel(vocab_size=4097, dtype="float32")
    assert model == CodeLanguageModel(vocab_size=4097, **get_config("scale=paper").model)
    shapes = jax.eval_shape(
        model.init, jax.random.key(0), jnp.zeros((1, 512, 512, 3)), jnp.zeros((1, 256), jnp.int32)
    )
    flat = traverse_util.flatten_dict(shapes["params"], sep="/")
    assert sum(leaf.size for leaf in flat.values()) == 715_729_921
    names = {
        "EmbedPatches/kernel": (16, 16, 3, 1024),
        "pos_embedding_encoder": (1, 1024, 1024),
        "pos_embedding_decoder": (1, 256, 1024),
        "encoder/encoderblock_23/MultiHeadDotProductAttention_0/query/bias": (16, 64),
        "decoder/EmbedTargets/embedding": (4097, 1024),
        "decoder/EncDecBlock23/SelfAttn/query/kernel": (1024, 16, 64),
        "decoder/EncDecBlock0/CrossAttn/out/kernel": (16, 64, 1024),
        "decoder/EncDecBlock0/LayerNorm3/scale": (1024,),
        "decoder/EncDecBlock0/MLP/Dense_0/kernel": (1024, 4096),
        "decoder/LayerNorm/scale": (1024,),
        "decoder/LogitsDense/kernel": (1024, 4097),
    }
    assert {name: flat[name].shape for name in names} == names
    assert not any("Attn" in name and "bias" in name for name in flat)


def test_starts_with_equal_logits():
    @jax.jit
    def drawn():  # no more than is looked at, so that no more is compiled
        decoder = MODEL.init(jax.random.key(0), IMAGE, CODES)["params"]["decoder"]
        return decoder["LogitsDense"]["kernel"], jnp.std(decoder["EmbedTargets"]["embedding"])

    head, deviation = drawn()
    assert not head.any()
    np.testing.assert_allclose(deviation, 1, atol=0.2)


def test_reads_the_published_tree_and_agrees_with_the_reference(shared):
    folder = shared / "oracles" / "uvim_lm"
    tree = traverse_util.unflatten_dict(dict(np.load(folder / "checkpoint.npz")), sep="/")
    expected = np.load(folder / "expected.npz")
    model = CodeLanguageModel(
        vocab_size=33,
        num_tokens=16,
        patch=8,
        width=32,
        encoder_depth=2,
        decoder_depth=2,
        num_heads=4,
        mlp_dim=64,
    )
    indices = expected["targets"] - 1
    shapes = jax.eval_shape(model.init, jax.random.key(0), expected["image"], indices)
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, {"params": tree})
    logits = jax.jit(model.apply)({"params": tree}, expected["image"], indices)
    np.testing.assert_allclose(logits, expected["logits"], atol=1e-4)


def walk(model, image, indices):
    """Logits [B, N, V] of one position after the other, the tokens before it being given."""
    step, cache = decoding(model, drawn()["params"], image)
    tokens = jnp.pad(indices[:, :-1] + 1, ((0, 0), (1, 0)))

    def one(cache, now):
        logits, cache = step(cache, *now)
        return cache, logits

    _, logits = jax.lax.scan(one, cache, (tokens.T, jnp.arange(model.num_tokens)))
    return logits.swapaxes(0, 1)


@pytest.mark.parametrize("dtype, atol", [("float32", 1e-5), ("bfloat16", 0.1)])
def test_steps_with_a_cache_give_the_logits_of_all_at_once(dtype, atol):
    model = MODEL.clone(dtype=dtype)
    full = APPLY(drawn(), IMAGE, CODES)
    steps = jax.jit(functools.partial(walk, model))(IMAGE, CODES)
    assert steps.dtype == jnp.float32 and full.std() > 0.3
    np.testing.assert_allclose(steps, full, atol=atol)


def test_greedy_tokens_are_the_likeliest_given_themselves():
    @jax.jit
    def decode(image):
        return autoregressive.sample_indices(
            *decoding(MODEL, drawn()["params"], image),
            jax.random.key(0),
            num_tokens=6,
            batch=2,
        )

    indices = decode(IMAGE)
    logits = APPLY(drawn(), IMAGE, indices)
    np.testing.assert_array_equal(indices, logits[..., 1:].argmax(-1))


def test_no_position_sees_its_own_code_or_later_ones():
    """By changes of one code, and by the gradient of each position's logits."""
    logits = APPLY(drawn(), IMAGE, CODES)
    for n in range(6):
        changed = CODES.copy()
        changed[:, n] = (changed[:, n] + 1) % 8
        moved = np.abs(APPLY(drawn(), IMAGE, changed) - logits).max(axis=(0, 2)) > 0
        np.testing.assert_array_equal(moved, np.arange(6) > n)

    positions = lambda p: {"params": drawn()["params"] | {"pos_embedding_decoder": p}}  # noqa: E731
    jacobian = jax.jit(
        jax.jacobian(lambda p: MODEL.apply(positions(p), IMAGE, CODES).sum(axis=(0, 2)))
    )(drawn()["params"]["pos_embedding_decoder"])
    depends = np.abs(jacobian[:, 0]).max(axis=-1) > 0
    np.testing.assert_array_equal(depends, np.tri(6, dtype=bool))


def test_bfloat16_and_remat():
    logits = APPLY(drawn(), IMAGE, CODES)
    half = jax.jit(MODEL.clone(dtype="bfloat16").apply)(drawn(), IMAGE, CODES)
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half, logits, atol=0.1)

    def gradient(remat):
        model = MODEL.clone(remat=remat)
        return jax.jit(jax.grad(lambda v: (model.apply(v, IMAGE, CODES) ** 2).mean()))(drawn())

    close = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5)  # noqa: E731
    jax.tree.map(close, gradient(False), gradient(True))


def test_errors_name_the_shapes():
    with pytest.raises(ValueError, match=r"\(2, 5\), but num_tokens=6"):
        MODEL.apply(drawn(), IMAGE, CODES[:, :5])
    with pytest.raises(ValueError, match="pos_embedding_encoder is for 6 tokens.* has 4"):
        MODEL.apply(drawn(), IMAGE[:, :, :8], CODES)
