"""Attention and dropout, chosen so that a short sequence is fast on a GPU.

Ways to compute softmax(q k / sqrt(D)) v:

- "fused": kernels of our own for self-attention of short sequences (NVIDIA GPU, bfloat16 or
  float16), with exact dropout, see `fused_attention`. For `self_attention` alone.
- "cudnn": the fused flash kernel of cuDNN (NVIDIA GPU, bfloat16 or float16), for any number of
  queries and keys. No dropout: its own takes a seed that is fixed when the program is compiled,
  advances with every call and starts over in a new process, so that neither a step nor
  a resumed run could be repeated.
- "xla": plain matrix products, the softmax in float32. Rematerialised: only q, k and v are kept
  for the backward pass. Runs everywhere, with exact dropout.
- "auto": the first of these that can run.

Shapes: B batch  L tokens  H heads  D width of a head  Q queries  K keys (as many, or not)
"""

import functools
import importlib.util
import re

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from fsq_jax.runtime import compiler
from fsq_jax.runtime.placement import split_by_example
from fsq_jax.runtime.user_error import UserError

IMPLEMENTATIONS = ("auto", "fused", "cudnn", "xla")
DROPOUT_BITS = "dropout_bits"  # what a remat policy calls the saved random words
_HALVES = 2  # random 16-bit numbers in a word
_STEPS = 2**16


def dropped_share(rate: float) -> float:
    """The share that `keep_mask` drops: `rate` to a multiple of 2^-16 (0.1 -> 0.100006).

    Raises UserError when rate is outside [0, 1) or rounds to 0 or 1.
    """
    steps = round(_STEPS * rate)
    if not 0 <= rate < 1 or steps == _STEPS or (rate > 0 and steps == 0):
        raise UserError(f"A dropout rate is 0 or lies in [2^-16, 1 - 2^-16], got {rate}.")
    return steps / _STEPS


def keep_mask(key: jax.Array, rate: float, shape: tuple[int, ...]) -> jax.Array:
    """Bools of `shape`, False with probability `dropped_share(rate)`.

    Sixteen bits decide one element, so a random word serves two: half of the generator's work,
    which is what dropout costs on a GPU. A function of key and shape alone, so it is the same
    however the arrays are sharded.
    """
    *lead, width = shape
    words = jax.random.bits(key, (*lead, -(-width // _HALVES)), jnp.uint32)
    # Without the barrier the generator is fused into its reader and runs again for each element.
    words = jax.lax.optimization_barrier(checkpoint_name(words, DROPOUT_BITS))
    shifts = 16 * jnp.arange(_HALVES, dtype=jnp.uint32)[:, None]
    values = (words[..., None, :] >> shifts) & (_STEPS - 1)
    values = values.reshape(*lead, -1)[..., :width]
    return values >= round(_STEPS * dropped_share(rate))


def dropout(x: jax.Array, rate: float, key: jax.Array | None, mask_shape=None) -> jax.Array:
    """x with a random share of its elements zeroed and the others scaled up; same mean, dtype.

    `mask_shape` broadcasts against x (default: x.shape). Rate 0 returns x and needs no key.
    """
    if rate == 0:
        return x
    assert key is not None
    keep = keep_mask(key, rate, x.shape if mask_shape is None else mask_shape)
    # In float32: bfloat16 would round the scale itself, by 0.16 % at a rate of 0.1.
    scaled = x.astype(jnp.float32) * (1 / (1 - dropped_share(rate)))
    return jnp.where(keep, scaled, 0).astype(x.dtype)


def resolve(
    implementation: str, dtype, head_dim: int, dropout_rate: float = 0.0, joined: bool = False
) -> str:
    """ "fused", "cudnn" or "xla": what "auto" means for these values on the default device.

    joined: whether it is for `self_attention`.
    Raises UserError for an unknown name and for values that cuDNN or our kernels cannot take.
    """
    if implementation not in IMPLEMENTATIONS:
        raise UserError(f"attention is one of {IMPLEMENTATIONS}, got {implementation!r}.")
    half = jnp.dtype(dtype) in (jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float16))
    fits = half and head_dim % 8 == 0 and head_dim <= 128
    if implementation == "auto":
        if not fits or not _has_flash_kernels():
            return "xla"
        if joined and _has_triton():
            return "fused"
        return "cudnn" if dropout_rate == 0 else "xla"
    if implementation in ("fused", "cudnn") and not fits:
        raise UserError(
            f"attention={implementation} takes bfloat16 or float16 and heads whose width is a "
            f"multiple of 8 up to 128, got {jnp.dtype(dtype).name} and {head_dim}."
        )
    if implementation == "cudnn" and dropout_rate > 0:
        raise UserError(f"cuDNN attention has no exact dropout, got {dropout_rate=}.")
    return implementation


def _has_flash_kernels() -> bool:
    device = compiler.device()
    capability = str(device.compute_capability) if device.platform == "gpu" else ""
    return bool(re.fullmatch(r"\d+\.\d+", capability)) and float(capability) >= 8.0  # not "gfx942"


def _has_triton() -> bool:
    """Whether this JAX can still compile kernels through Triton, which it means to give up."""
    return importlib.util.find_spec("jax.experimental.pallas.triton") is not None


def self_attention(
    qkv_BL3HD: jax.Array,
    *,
    dropout_rate: float = 0.0,
    key: jax.Array | None = None,
    implementation: str = "auto",
    length: int | None = None,
) -> jax.Array:
    """What every token reads from the others' values: [B, L, H, D], of joined q, k and v.

    As `attention` with a shared mask; the rows of tokens from `length` on hold no meaning.
    """
    _, num_tokens, _, _, head_dim = qkv_BL3HD.shape
    length = num_tokens if length is None else length
    chosen = resolve(implementation, qkv_BL3HD.dtype, head_dim, dropout_rate, joined=True)
    if chosen != "fused":
        return attention(
            *(qkv_BL3HD[:, :, i] for i in range(3)),
            dropout_rate=dropout_rate,
            key=key,
            implementation=chosen,
            length=length,
        )
    from fsq_jax.models import fused_attention  # imports Triton, which is not everywhere

    keep_LL = None
    if dropout_rate > 0:
        assert key is not None
        keep_LL = keep_mask(key, dropout_rate, (num_tokens, num_tokens)).astype(jnp.int8)
    kept = 1 / (1 - dropped_share(dropout_rate))
    settings = fused_attention.Settings(length=length, scale=head_dim**-0.5, kept=kept)
    return fused_attention.self_attention(qkv_BL3HD, keep_LL, settings)


def attention(
    q_BQHD: jax.Array,
    k_BKHD: jax.Array,
    v_BKHD: jax.Array,
    *,
    dropout_rate: float = 0.0,
    key: jax.Array | None = None,
    implementation: str = "auto",
    length: int | jax.Array | None = None,
    shared_dropout: bool = True,
    causal: bool = False,
) -> jax.Array:
    """What every query reads from the keys' values: [B, Q, H, D], in the dtype of q.

    Keys from position `length` on are padding and are not read; of queries as many as keys, rows
    of padding hold no meaning. A traced `length` is for "xla" ("auto" knows). With `causal`,
    query i reads keys 0..i alone, and there are as many keys as queries. cuDNN wants even numbers
    of both, best multiples of 8; "auto" gives it no odd ones.

    Dropout acts on the attention weights. With `shared_dropout` one [Q, K] mask serves all
    examples and heads of the call: what Flax's attention does by default, and so what MaskGIT
    was trained with. Weights are zeroed after the softmax and the rest scaled by 1/(1 - rate).

    Raises UserError for values that the implementation cannot take.
    """
    num_queries, num_keys, head_dim = q_BQHD.shape[1], k_BKHD.shape[1], q_BQHD.shape[-1]
    length = num_keys if length is None else length
    traced = isinstance(length, jax.Array)
    if not traced and not 0 < length <= num_keys:
        raise UserError(f"{length=} is not in 1..{num_keys}, the number of tokens.")
    if causal and num_queries != num_keys:
        raise UserError(f"Causal attention of {num_queries} queries to {num_keys} keys.")
    if dropout_rate > 0 and key is None:
        raise UserError(f"{dropout_rate=} needs a key.")
    odd = num_queries % 2 or num_keys % 2
    if implementation == "auto" and (odd or traced):
        implementation = "xla"
    chosen = resolve(implementation, q_BQHD.dtype, head_dim, dropout_rate)
    if chosen == "xla":
        compute = functools.partial(
            _xla_attention, rate=dropout_rate, length=length, shared=shared_dropout, causal=causal
        )
        return jax.checkpoint(compute)(q_BQHD, k_BKHD, v_BKHD, key)
    if odd or traced:
        raise UserError(
            f"cuDNN attention takes an even number of tokens, got {num_queries}, and {num_keys} "
            "keys, with a length that is known when it is compiled."
        )
    return _cudnn_attention(q_BQHD, k_BKHD, v_BKHD, length, causal)


def _xla_attention(q_BQHD, k_BKHD, v_BKHD, key, *, rate, length, shared, causal):
    head_dim = q_BQHD.shape[-1]
    scores_BHQK = _scores(q_BQHD, k_BKHD) * head_dim**-0.5
    num_queries, num_keys = scores_BHQK.shape[-2:]
    lowest = jnp.finfo(jnp.float32).min
    if isinstance(length, jax.Array) or length < num_keys:
        scores_BHQK = jnp.where(jnp.arange(num_keys) < length, scores_BHQK, lowest)
    if causal:
        earlier_QK = jnp.arange(num_keys) <= jnp.arange(num_queries)[:, None]
        scores_BHQK = jnp.where(earlier_QK, scores_BHQK, lowest)
    weights_BHQK = jax.nn.softmax(scores_BHQK, axis=-1)
    mask_shape = weights_BHQK.shape[-2:] if shared else weights_BHQK.shape
    weights_BHQK = dropout(weights_BHQK, rate, key, mask_shape).astype(v_BKHD.dtype)
    return jnp.einsum("bhqk,bkhd->bqhd", weights_BHQK, v_BKHD)


@jax.custom_vjp
def _scores(q_BQHD, k_BKHD):
    """Products of queries and keys in float32; those of the backward pass run in their dtype.

    One of the changes between experiments/results/speed/h100/before/uvim_base_step.jsonl (1,178 ms
    a step) and uvim_base_step.jsonl beside that folder (1,084 ms).
    """
    return jnp.einsum("bqhd,bkhd->bhqk", q_BQHD, k_BKHD, preferred_element_type=jnp.float32)


def _scores_fwd(q_BQHD, k_BKHD):
    return _scores(q_BQHD, k_BKHD), (q_BQHD, k_BKHD)


def _scores_bwd(residuals, grad_BHQK):
    q_BQHD, k_BKHD = residuals
    grad_BHQK = grad_BHQK.astype(q_BQHD.dtype)
    grad_q_BQHD = jnp.einsum("bhqk,bkhd->bqhd", grad_BHQK, k_BKHD)
    return grad_q_BQHD, jnp.einsum("bhqk,bqhd->bkhd", grad_BHQK, q_BQHD)


_scores.defvjp(_scores_fwd, _scores_bwd)


def _cudnn_attention(q_BQHD, k_BKHD, v_BKHD, length, causal):
    batch, num_queries = q_BQHD.shape[:2]
    num_keys = k_BKHD.shape[1]
    queries_B = keys_B = None  # cuDNN wants both lengths or none
    if length < num_keys:
        keys_B = jnp.full((batch,), length, jnp.int32)
        queries_B = keys_B if num_queries == num_keys else jnp.full_like(keys_B, num_queries)
    # cuDNN's call refuses queries and keys that are cut along different axes, as XLA likes to have
    # them where the weights that they come from are cut (FSDP).
    read_BQHD = jax.nn.dot_product_attention(
        *(split_by_example(x) for x in (q_BQHD, k_BKHD, v_BKHD)),
        is_causal=causal,
        query_seq_lengths=queries_B,
        key_value_seq_lengths=keys_B,
        implementation="cudnn",
    )
    return split_by_example(read_BQHD)
