import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.maskgit_transformer import get_config
from fsq_jax.models.layers import lookup
from fsq_jax.models.maskgit_transformer import MaskedTransformer

SMALL = dict(vocab_size=22, num_positions=17, width=32, depth=2, num_heads=4, mlp_dim=64)
TOKENS = np.random.default_rng(0).integers(0, 22, (3, 17)).astype(np.int32)


@functools.cache
def _params(**changes):
    model = MaskedTransformer(**{**SMALL, **changes})
    return model, jax.jit(model.init)(jax.random.key(0), TOKENS)


@functools.partial(jax.jit, static_argnums=0, static_argnames="train")
def _apply(model, variables, **options):
    return model.apply(variables, TOKENS, **options)


def test_paper_size_has_the_published_parameter_count():
    """With VQ; with FSQ they are counted in tests/describe_test.py."""
    sizes = dict(vocab_size=2025, num_positions=257)
    model = MaskedTransformer(**sizes, dtype="float32")
    assert model == MaskedTransformer(**sizes, **get_config("scale=paper").model)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 257), jnp.int32))
    leaves = jax.tree.leaves(shapes)
    assert sum(leaf.size for leaf in leaves) == 172_457_193
    assert len(leaves) == 393
    attention = shapes["params"]["TransformerLayer_23"]["Attention_0"]["self_attention"]
    assert attention["query"]["kernel"].shape == (768, 16, 48)


def test_first_logits_are_those_of_the_full_vocabulary():
    model, variables = _params()
    full = _apply(model, variables)
    assert full.shape == (3, 17, 22) and full.dtype == jnp.float32
    first = _apply(model.clone(num_logits=16), variables)
    np.testing.assert_allclose(first, np.asarray(full)[..., :16], atol=1e-6)


def test_bfloat16_pads_but_agrees():
    model, variables = _params()
    half = _apply(model.clone(dtype=jnp.bfloat16), variables)
    assert half.shape == (3, 17, 22) and half.dtype == jnp.float32
    np.testing.assert_allclose(half, _apply(model, variables), atol=0.05)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))


def test_initial_weights_are_normals_cut_at_two_deviations():
    _, variables = _params()
    params = jax.device_get(variables["params"])
    kernel = params["TransformerLayer_0"]["Mlp_0"]["intermediate_output"]["kernel"]
    for weights in (kernel, params["Embed_0"]["word_embeddings"]["embedding"]):
        assert np.abs(weights).max() <= 0.04
        np.testing.assert_allclose(weights.std(), 0.0176, rtol=0.1)
    assert not np.any(params["MlmLayer_0"]["mlm_bias"]["bias"])


def test_dropout_acts_in_training_only_and_follows_its_key():
    model, variables = _params()

    def train(seed):
        rngs = {"dropout": jax.random.key(seed)}
        return np.asarray(_apply(model, variables, train=True, rngs=rngs))

    np.testing.assert_array_equal(train(1), train(1))
    assert np.abs(train(1) - train(2)).max() > 1e-3
    still = model.clone(dropout=0.0, attention_dropout=0.0)
    np.testing.assert_array_equal(_apply(still, variables, train=True), _apply(model, variables))


def test_remat_changes_no_gradient():
    model, variables = _params(depth=1)

    def gradient(remat):
        def loss(variables):
            logits = model.clone(remat=remat).apply(
                variables, TOKENS, train=True, rngs={"dropout": jax.random.key(1)}
            )
            return jnp.mean(logits**2)

        return jax.jit(jax.grad(loss))(variables)

    expected = gradient("none")
    for remat in ("dots", "full"):
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, atol=1e-6), gradient(remat), expected
        )


def test_lookup_gradient_is_that_of_indexing():
    table = np.arange(12, dtype=np.float32).reshape(4, 3)
    ids = np.array([[0, 2, 2], [3, 0, 2]])
    weights = np.random.default_rng(0).standard_normal((2, 3, 3), np.float32)
    ours = jax.jit(jax.grad(lambda t: jnp.vdot(lookup(t, ids, jnp.float32), weights)))(table)
    theirs = jax.jit(jax.grad(lambda t: jnp.vdot(t[ids], weights)))(table)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_errors_name_the_values():
    model, variables = _params()
    with pytest.raises(ValueError, match=r"\(3, 16\).*num_positions=17"):
        model.apply(variables, TOKENS[:, 1:])
    with pytest.raises(ValueError, match="width=32 is no multiple of num_heads=5"):
        _params(num_heads=5)
    with pytest.raises(ValueError, match="num_logits=23"):
        _params(num_logits=23)
    with pytest.raises(ValueError, match="some"):
        _params(remat="some")
