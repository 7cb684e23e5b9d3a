import functools
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fsq_jax.models import attention as lib
from fsq_jax.runtime import compiler

# Compiled as one program: operation by operation, every shape costs a dozen compilations.
STATIC = ("dropout_rate", "implementation", "length", "shared_dropout", "causal")
attention = jax.jit(lib.attention, static_argnames=STATIC)
of_flax = jax.jit(nn.dot_product_attention)


def _qkv(shape=(2, 9, 3, 8)):
    return np.random.default_rng(0).standard_normal((3, *shape), np.float32)


def test_agrees_with_flax():
    q, k, v = _qkv()
    np.testing.assert_allclose(attention(q, k, v), of_flax(q, k, v), atol=1e-6)


def test_padding_is_never_read_and_gets_no_gradient():
    q, k, v = _qkv()

    def read(q, k, v):
        return attention(q, k, v, length=6)[:, :6]

    expected = attention(q[:, :6], k[:, :6], v[:, :6])
    np.testing.assert_allclose(read(q, k, v), expected, atol=1e-6)
    total = jax.grad(lambda *qkv: jnp.sum(read(*qkv) ** 2), argnums=(0, 1, 2))
    for grad in map(np.asarray, jax.jit(total)(q, k, v)):
        assert np.isfinite(grad).all() and (grad[:, 6:] == 0).all()


def test_bfloat16_is_near_float32():
    q, k, v = _qkv()
    half = attention(*(x.astype(jnp.bfloat16) for x in (q, k, v)))
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float32(half), attention(q, k, v), atol=3e-2)


@pytest.mark.parametrize("shared", [True, False])
def test_dropout_zeroes_weights_after_the_softmax(shared):
    batch, length, heads = 2, 8, 2
    q, k, _ = _qkv((batch, length, heads, length))
    identity = np.eye(length)[None, :, None].repeat(batch, 0).repeat(heads, 2)  # v shows weights
    weights = np.asarray(attention(q, k, identity))
    dropped = np.asarray(
        attention(q, k, identity, dropout_rate=0.5, key=jax.random.key(1), shared_dropout=shared)
    )
    zero = dropped == 0
    np.testing.assert_allclose(dropped, np.where(zero, 0, 2 * weights), rtol=1e-5)
    assert 0.2 < zero.mean() < 0.8
    assert (zero == zero[:1, :, :1]).all() == shared


def test_only_inputs_are_kept_for_the_backward_pass():
    q, k, v = _qkv((1, 64, 2, 8))
    key = jax.random.key(0)
    _, backward = jax.vjp(
        lambda q, k, v: lib.attention(q, k, v, dropout_rate=0.1, key=key), q, k, v
    )
    assert max(leaf.size for leaf in jax.tree.leaves(backward)) <= q.size


@pytest.mark.parametrize("dtype, atol", [("float32", 1e-5), ("bfloat16", 0.03)])
def test_gradients_are_those_of_jax(dtype, atol):
    q, k, v = _qkv((2, 6, 2, 8))
    weight = np.random.default_rng(1).standard_normal(q.shape)

    def grads(attend, *arrays):
        total = jax.grad(lambda *qkv: (attend(*qkv) * weight).sum(), argnums=(0, 1, 2))
        return jax.jit(total)(*arrays)

    ours = functools.partial(lib.attention, implementation="xla")
    expected = grads(jax.nn.dot_product_attention, q, k, v)
    found = grads(ours, *(x.astype(dtype) for x in (q, k, v)))
    for got, want in zip(found, expected, strict=True):
        np.testing.assert_allclose(np.float32(got), want, atol=atol, rtol=atol)


def test_dropout_gradient_uses_the_forward_mask():
    q, k, v = _qkv((1, 4, 1, 8))
    key = jax.random.key(3)

    @jax.jit
    def total(v):
        return lib.attention(q, k, v, dropout_rate=0.5, key=key).sum()

    # Linear in v: the gradient must give the value back.
    np.testing.assert_allclose(np.vdot(jax.jit(jax.grad(total))(v), v), total(v), rtol=1e-5)


@pytest.mark.parametrize("width", [5, 8, 257])
def test_keep_mask_has_the_promised_share_and_independent_columns(width):
    rate = 0.1
    keep = np.asarray(
        jax.jit(lambda key: lib.keep_mask(key, rate, (4000, width)))(jax.random.key(0))
    )
    assert lib.dropped_share(rate) == pytest.approx(rate, abs=1e-5)
    share = 1 - lib.dropped_share(rate)
    assert keep.shape == (4000, width) and keep.dtype == bool
    np.testing.assert_allclose(keep.mean(), share, atol=5 * np.sqrt(0.09 / keep.size))
    columns = keep[:, :5] - share
    correlation = columns.T @ columns / 4000 / 0.09
    assert np.abs(correlation - np.diag(np.diag(correlation))).max() < 0.1


def test_keep_mask_does_not_depend_on_sharding():
    if jax.device_count() < 8:
        pytest.skip(f"needs 8 devices, there are {jax.device_count()}")
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.NamedSharding(mesh, jax.P("data"))
    x = np.ones((16, 4, 12), np.float32)
    drop = jax.jit(lambda x: lib.dropout(x, 0.3, jax.random.key(5)))
    sharded = drop(jax.device_put(x, sharding))
    assert sharded.sharding.is_equivalent_to(sharding, 3)
    np.testing.assert_array_equal(sharded, drop(x))


def test_dropout_keeps_the_mean_and_the_dtype():
    x = jnp.ones((400, 100), jnp.bfloat16)
    dropped = jax.jit(lambda x: lib.dropout(x, 0.25, jax.random.key(0)))(x)
    assert dropped.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float32(dropped).mean(), 1, atol=0.02)
    assert lib.dropout(x, 0.0, None) is x


def test_resolve_falls_back_on_a_cpu():
    assert lib.resolve("auto", jnp.float32, 48) == "xla"
    assert lib.resolve("cudnn", jnp.bfloat16, 48) == "cudnn"
    if jax.default_backend() == "cpu":
        assert lib.resolve("auto", jnp.bfloat16, 48) == "xla"


@pytest.mark.parametrize(
    ("capability", "chosen"), [("9.0", "cudnn"), ("7.5", "xla"), ("gfx942", "xla")]
)
def test_auto_asks_what_the_gpu_can_do_and_not_whether_it_is_here(monkeypatch, capability, chosen):
    gpu = SimpleNamespace(platform="gpu", compute_capability=capability)
    monkeypatch.setattr(compiler, "device", lambda: gpu)
    assert lib.resolve("auto", jnp.bfloat16, 64) == chosen


def test_errors_name_the_values():
    q, k, v = _qkv()
    with pytest.raises(ValueError, match="flash"):
        lib.attention(q, k, v, implementation="flash")
    with pytest.raises(ValueError, match="float32 and 8"):
        lib.attention(q, k, v, implementation="cudnn")
    with pytest.raises(ValueError, match="even number of tokens, got 9"):
        half = [x.astype(jnp.bfloat16) for x in (q, k, v)]
        lib.attention(*half, implementation="cudnn")
    with pytest.raises(ValueError, match="length=10"):
        lib.attention(q, k, v, length=10)
    with pytest.raises(ValueError, match="needs a key"):
        lib.attention(q, k, v, dropout_rate=0.1)
    for rate in (-0.1, 1.0, 1e-06):
        with pytest.raises(ValueError, match=str(rate)):
            lib.dropped_share(rate)


def test_causal_attention_and_attention_to_others_agree_with_flax():
    q, k, v = _qkv()
    mask = nn.make_causal_mask(jnp.ones((2, 9)))
    np.testing.assert_allclose(
        attention(q, k, v, causal=True), of_flax(q, k, v, mask=mask), atol=1e-6
    )
    np.testing.assert_allclose(attention(q[:, :4], k, v), of_flax(q[:, :4], k, v), atol=1e-6)
    with pytest.raises(ValueError, match="4 queries to 9 keys"):
        lib.attention(q[:, :4], k, v, causal=True)


def test_length_may_be_traced():
    q, k, v = _qkv()
    last = jax.jit(lambda n: lib.attention(q[:, :1], k, v, length=n))
    np.testing.assert_allclose(last(6), attention(q, k[:, :6], v[:, :6])[:, :1], atol=1e-6)
    with pytest.raises(ValueError, match="known when it is compiled"):
        half = [x.astype(jnp.bfloat16) for x in (q[:, :2], k[:, :8], v[:, :8])]
        lib.attention(*half, length=jnp.int32(3), implementation="cudnn")
