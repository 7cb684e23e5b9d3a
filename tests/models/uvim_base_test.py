"""UViM's stage I: the published tree, the reference's answers, what may depend on what."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from configs.uvim_base import get_config
from fsq_jax import quantizers
from fsq_jax.models.uvim_base import LabelAutoencoder, kept_codes
from fsq_jax.stages.uvim_base import make_model
from tests.tiny import random_variables

SMALL = dict(
    patch=4, width=16, encoder_depth=1, decoder_depth=1, num_heads=2, mlp_dim=32, code_side=2
)
RNG = np.random.default_rng(0)
IMAGE = RNG.uniform(-1, 1, (2, 16, 8, 3)).astype(np.float32)  # 4 x 2 patches
KINDS = {"semantics": 5, "instances": 3}
LABELS = {kind: RNG.integers(0, n, (2, 8, 16)).astype(np.int32) for kind, n in KINDS.items()}


def small(**changes):
    quantizer = quantizers.make("fsq", levels=(5, 4, 3))
    return LabelAutoencoder(**{**SMALL, "quantizer": quantizer, "kinds": KINDS, **changes})


@functools.cache
def drawn():
    return random_variables(small(), LABELS, IMAGE)


def with_vq(**options):
    return small(quantizer=quantizers.make("vq_ema", codebook_size=8, channels=6, **options))


@pytest.mark.parametrize(
    "task, kinds, expected",
    [
        ("depth", {"depth": 256}, 232_249_600),
        ("colorization", {"color": 3}, 132_701_184),
        ("panoptic", {"semantics": 134, "instances": 100}, 223_593_984),
    ],
    ids=["depth", "colorization", "panoptic"],
)
def test_paper_size_has_the_published_tree(task, kinds, expected):
    real = "color" in kinds
    quantizer = quantizers.make("vq_ema", codebook_size=4096, channels=768)
    model = make_model(get_config(f"scale=paper,task={task},quantizer=vq_ema"))
    assert model == LabelAutoencoder(quantizer, kinds, real, dtype="float32")
    shape = (1, 1024, 3, 256) if real else (1, 1024, 256)
    labels = {kind: jnp.zeros(shape, jnp.float32 if real else jnp.int32) for kind in kinds}
    variables = jax.eval_shape(model.init, jax.random.key(0), labels, jnp.zeros((1, 512, 512, 3)))
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == expected
    assert model.num_tokens == 256
    state = variables["codebook_state"]["quantizer"]
    assert state["dictionary"].shape == (4096, 768) and state["counts"].shape == (4096,)
    flat = traverse_util.flatten_dict(variables["params"], sep="/")
    attention = "MultiHeadDotProductAttention_0"
    names = {
        "ctx_enc_embedding/kernel": (16, 16, 3, 768),
        "ctx_dec_embedding/bias": (768,),
        "pos_embedding_encoder": (1, 1024, 768),
        "pos_embedding_decoder": (1, 1024, 768),
        f"encoder/encoderblock_5/{attention}/query/kernel": (768, 12, 64),
        f"decoder/encoderblock_11/{attention}/out/kernel": (12, 64, 768),
        "encoder/encoderblock_0/MlpBlock_0/Dense_1/kernel": (3072, 768),
        "decoder/encoderblock_0/LayerNorm_1/scale": (768,),
        "encoder/encoder_norm/bias": (768,),
        "encoder_head/kernel": (768, 768),
        "decoder_stem/kernel": (768, 768),
    }
    for kind, channels in kinds.items():
        names[f"embedding_{kind}/kernel"] = (channels, 256, 768)
        names[f"head_{kind}/kernel"] = (768, channels, 256)
        names[f"head_{kind}/bias"] = (channels, 256)
    assert {name: flat[name].shape for name in names} == names


def test_reads_the_published_tree_and_agrees_with_the_reference(shared):
    folder = shared / "oracles" / "uvim_depth"
    tree = traverse_util.unflatten_dict(dict(np.load(folder / "checkpoint.npz")), sep="/")
    variables = {"params": tree["params"], "codebook_state": {"quantizer": tree["state"]}}
    expected = np.load(folder / "expected.npz")
    model = LabelAutoencoder(
        quantizers.make("vq_ema", codebook_size=32, channels=32),
        {"depth": 16},
        patch=8,
        width=32,
        encoder_depth=1,
        decoder_depth=2,
        num_heads=4,
        mlp_dim=64,
        code_side=4,
    )
    inputs = {"depth": expected["ids_depth"]}, expected["context"]
    shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs)
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, variables)
    logits, quantized = jax.jit(model.apply)(variables, *inputs)
    np.testing.assert_array_equal(quantized.indices, expected["code"])
    np.testing.assert_allclose(logits["depth"], expected["logits_depth"], atol=1e-4)


def test_parts_make_the_whole_and_both_precisions_agree():
    model = small()
    logits, quantized = jax.jit(model.apply)(drawn(), LABELS, IMAGE)
    assert {kind: x.shape for kind, x in logits.items()} == {
        "semantics": (2, 8, 5, 16),
        "instances": (2, 8, 3, 16),
    }
    assert quantized.indices.shape == (2, 4) and quantized.codes.shape == (2, 4, 3)
    decode = jax.jit(functools.partial(model.apply, method="decode_indices"))
    close = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5)  # noqa: E731
    jax.tree.map(close, logits, decode(drawn(), quantized.indices, IMAGE))
    half = small(dtype="bfloat16")
    decode = jax.jit(functools.partial(half.apply, method="decode_indices"))
    for kind, x in decode(drawn(), quantized.indices, IMAGE).items():
        assert x.dtype == jnp.float32
        np.testing.assert_allclose(x, logits[kind], atol=0.05 * np.abs(logits[kind]).max())


def test_real_labels():
    model = small(kinds={"color": 3}, real=True)
    labels = {"color": RNG.normal(size=(2, 8, 3, 16)).astype(np.float32)}
    variables = random_variables(model, labels, IMAGE)
    logits, _ = jax.jit(model.apply)(variables, labels, IMAGE)
    assert logits["color"].shape == labels["color"].shape


@pytest.mark.parametrize("encoder", [True, False])
@pytest.mark.parametrize("decoder", [True, False])
def test_context_switches_remove_any_dependence(encoder, decoder):
    model = small(encoder_context=encoder, decoder_context=decoder)
    variables = random_variables(model, LABELS, IMAGE)
    assert ("ctx_enc_embedding" in variables["params"]) == encoder
    assert ("ctx_dec_embedding" in variables["params"]) == decoder

    def gradients(image):
        def codes(image):
            return model.apply(variables, LABELS, image, method="encode").codes.sum()

        def logits(image):
            out = model.apply(variables, jnp.zeros((2, 4), int), image, method="decode_indices")
            return sum((x**2).sum() for x in out.values())

        return jax.grad(codes)(image), jax.grad(logits)(image)

    for sees, grad in zip((encoder, decoder), jax.jit(gradients)(IMAGE), strict=True):
        assert bool((grad != 0).any()) == sees


def test_as_many_codes_are_kept_as_dropped_and_any_number_as_often():
    keep = np.asarray(jax.jit(kept_codes, static_argnums=(1, 2))(jax.random.key(0), 20_000, 4))
    counts = np.bincount(keep.sum(axis=1), minlength=5)
    np.testing.assert_allclose(counts / 20_000, 0.2, atol=5 * (0.16 / 20_000) ** 0.5)
    np.testing.assert_allclose(keep.mean(axis=0), 0.5, atol=5 * (0.25 / 20_000) ** 0.5)
    ones = keep[keep.sum(axis=1) == 1]  # which one is kept is drawn for each example
    np.testing.assert_allclose(ones.mean(axis=0), 0.25, atol=0.04)


def test_dropped_codes_are_zeros_in_training_alone(monkeypatch):
    keep = np.array([[True, False, False, True], [False, False, False, False]])
    monkeypatch.setattr("fsq_jax.models.uvim_base.kept_codes", lambda *_: jnp.array(keep))
    rngs = {"code_dropout": jax.random.key(0)}

    def decoded(train, code_dropout):
        apply = functools.partial(small(code_dropout=code_dropout).apply, train=train, rngs=rngs)
        return jax.jit(apply)(drawn(), LABELS, IMAGE)[0]

    def zeroed(variables):
        codes = small().apply(variables, LABELS, IMAGE, method="encode").codes
        return small().apply(variables, codes * keep[..., None], IMAGE, method="decode")

    zeroed = jax.jit(zeroed)(drawn())
    close = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5)  # noqa: E731
    jax.tree.map(close, decoded(True, "random"), zeroed)
    whole = decoded(False, "random")
    jax.tree.map(close, decoded(True, "none"), whole)
    assert np.abs(whole["semantics"] - zeroed["semantics"]).max() > 1e-3
    with pytest.raises(ValueError, match="code_dropout.*'ordered'"):
        small(code_dropout="ordered")


def test_training_moves_the_codebook_and_evaluation_does_not():
    model = with_vq()
    variables = random_variables(model, LABELS, IMAGE)
    variables["codebook_state"]["quantizer"]["counts"] = np.ones(8, np.float32)
    rngs = {"codebook": jax.random.key(0), "code_dropout": jax.random.key(1)}

    def state(train):
        apply = functools.partial(model.apply, train=train, mutable="codebook_state", rngs=rngs)
        return jax.jit(apply)(variables, LABELS, IMAGE)[1]["codebook_state"]["quantizer"]

    before = variables["codebook_state"]["quantizer"]
    np.testing.assert_array_equal(state(False)["counts"], before["counts"])
    moved = state(True)["counts"]
    np.testing.assert_allclose(moved.sum(), 0.995 * 8 + 2 * 4, rtol=1e-5)


def test_remat_changes_nothing():
    def gradient(remat):
        model = small(remat=remat)
        return jax.jit(
            jax.grad(lambda v: (model.apply(v, LABELS, IMAGE)[0]["semantics"] ** 2).mean())
        )(drawn())

    close = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5)  # noqa: E731
    jax.tree.map(close, gradient(False), gradient(True))


def test_errors_name_the_shapes():
    with pytest.raises(ValueError, match=r"'instances' has shape \(2, 8, 9\).*\(2, 8, 16\)"):
        small().apply(drawn(), LABELS | {"instances": np.zeros((2, 8, 9), int)}, IMAGE)
    with pytest.raises(ValueError, match=r"\['depth'\], not of \['instances', 'semantics'\]"):
        small().apply(drawn(), {"depth": LABELS["semantics"]}, IMAGE)
    tall = np.zeros((2, 16, 16, 3), np.float32)
    with pytest.raises(ValueError, match="pos_embedding_decoder is for 8 tokens.* has 16"):
        small().apply(drawn(), np.zeros((2, 4), int), tall, method="decode_indices")
