"""Self-attention and dropout, chosen so that a short sequence is fast on a GPU.

Three ways to compute softmax(q k / sqrt(D)) v:

- "cudnn": the fused flash kernel of cuDNN (NVIDIA GPU, bfloat16 or float16). Nothing of size
  L x L is ever written. Its own dropout takes a seed that is fixed when the program is compiled,
  counts on by itself with every call and starts anew in a new process, so that neither a step
  nor a resumed run could be repeated; it is not used here. With `dropout_rate` this path masks
  keys before the softmax instead, see `attention`.
- "xla": plain matrix products, the softmax in float32. Rematerialised: only q, k and v are kept
  for the backward pass. Runs everywhere, with exact dropout.
- "auto": "cudnn" where it can run and no dropout is asked for, else "xla".

Shapes: B batch  L tokens  H heads  D width of a head  Q queries  K keys
"""

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

IMPLEMENTATIONS = ("auto", "cudnn", "xla")
DROPOUT_BITS = "dropout_bits"  # what a remat policy calls the saved random words
_BYTES = 4  # random bytes in a word


def dropped_share(rate: float) -> float:
    """The share that `keep_mask` drops: `rate` rounded to a multiple of 1/256 (0.1 -> 0.1016).

    Raises ValueError when rate is outside [0, 1) or rounds to 0 or 1.
    """
    steps = round(256 * rate)
    if not 0 <= rate < 1 or steps == 256 or (rate > 0 and steps == 0):
        raise ValueError(f"A dropout rate is 0 or lies in [1/256, 255/256], got {rate}.")
    return steps / 256


def keep_mask(key: jax.Array, rate: float, shape: tuple[int, ...]) -> jax.Array:
    """Bools of `shape`, False with probability `dropped_share(rate)`.

    One byte decides one element, so a random word serves four: a quarter of the generator's
    work, which is what dropout costs on a GPU. A function of key and shape alone, so it is the
    same however the arrays are sharded.
    """
    *lead, width = shape
    words = jax.random.bits(key, (*lead, -(-width // _BYTES)), jnp.uint32)
    # Without the barrier the generator is fused into its reader and runs once an element again.
    words = jax.lax.optimization_barrier(checkpoint_name(words, DROPOUT_BITS))
    shifts = 8 * jnp.arange(_BYTES, dtype=jnp.uint32)[:, None]
    values = (words[..., None, :] >> shifts) & 0xFF
    values = values.reshape(*lead, -1)[..., :width]
    return values >= round(256 * dropped_share(rate))


def dropout(x: jax.Array, rate: float, key: jax.Array | None, mask_shape=None) -> jax.Array:
    """x with a random share of its elements zeroed and the others scaled up; same mean, dtype.

    `mask_shape` broadcasts against x (default: x.shape). Rate 0 returns x and needs no key.
    """
    if rate == 0:
        return x
    keep = keep_mask(key, rate, x.shape if mask_shape is None else mask_shape)
    # In float32: bfloat16 would round the scale itself, by 0.3 % at a rate of 0.1.
    scaled = x.astype(jnp.float32) * (1 / (1 - dropped_share(rate)))
    return jnp.where(keep, scaled, 0).astype(x.dtype)


def resolve(implementation: str, dtype, head_dim: int, dropout_rate: float = 0.0) -> str:
    """"cudnn" or "xla": what "auto" means for these values on the default device.

    Raises ValueError for an unknown name and for values that cuDNN cannot take.
    """
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"attention is one of {IMPLEMENTATIONS}, got {implementation!r}.")
    half = jnp.dtype(dtype) in (jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float16))
    fits = half and head_dim % 8 == 0 and head_dim <= 128
    if implementation == "auto":
        return "cudnn" if fits and dropout_rate == 0 and _has_flash_kernels() else "xla"
    if implementation == "cudnn" and not fits:
        raise ValueError(
            "cuDNN attention takes bfloat16 or float16 and heads whose width is a multiple of 8 "
            f"up to 128, got {jnp.dtype(dtype).name} and {head_dim}."
        )
    return implementation


def _has_flash_kernels() -> bool:
    device = jax.local_devices()[0]
    if device.platform != "gpu" or "cuda" not in device.client.platform_version.lower():
        return False
    return float(device.compute_capability) >= 8.0


def attention(
    q_BLHD: jax.Array,
    k_BLHD: jax.Array,
    v_BLHD: jax.Array,
    *,
    dropout_rate: float = 0.0,
    key: jax.Array | None = None,
    implementation: str = "auto",
    length: int | None = None,
    shared_dropout: bool = True,
) -> jax.Array:
    """What every token reads from all others: [B, L, H, D], in the dtype of q.

    Keys from position `length` on are padding and are not read; rows of padding hold no meaning.
    cuDNN wants an even L, best a multiple of 8.

    Dropout acts on the attention weights. With `shared_dropout` one [L, L] mask serves all
    examples and heads of the call: what Flax's attention does by default, and so what MaskGIT
    was trained with. "xla" zeroes weights after the softmax and scales the rest by 1/(1 - rate).
    "cudnn" hides the same keys from the softmax, which makes the remaining weights sum to one: a
    close relative, equal in every row up to one factor, and only for a shared mask.

    Raises ValueError for values that the implementation cannot take.
    """
    *_, num_tokens, _, head_dim = q_BLHD.shape
    length = num_tokens if length is None else length
    if not 0 < length <= num_tokens:
        raise ValueError(f"{length=} is not in 1..{num_tokens}, the number of tokens.")
    if dropout_rate > 0 and key is None:
        raise ValueError(f"{dropout_rate=} needs a key.")
    chosen = resolve(implementation, q_BLHD.dtype, head_dim, dropout_rate)
    if chosen == "xla":
        compute = functools.partial(
            _xla_attention, rate=dropout_rate, length=length, shared=shared_dropout
        )
        return jax.checkpoint(compute)(q_BLHD, k_BLHD, v_BLHD, key)
    if num_tokens % 2:
        raise ValueError(f"cuDNN attention takes an even number of tokens, got {num_tokens}.")
    if dropout_rate > 0 and not shared_dropout:
        raise ValueError(f"cuDNN attention has only a shared mask for {dropout_rate=}.")
    return _cudnn_attention(q_BLHD, k_BLHD, v_BLHD, key, dropout_rate, length)


def _xla_attention(q_BLHD, k_BLHD, v_BLHD, key, *, rate, length, shared):
    head_dim = q_BLHD.shape[-1]
    scores_BHQK = jnp.einsum(
        "bqhd,bkhd->bhqk", q_BLHD, k_BLHD, preferred_element_type=jnp.float32
    )
    scores_BHQK *= head_dim**-0.5
    num_keys = k_BLHD.shape[1]
    if length < num_keys:
        lowest = jnp.finfo(jnp.float32).min
        scores_BHQK = jnp.where(jnp.arange(num_keys) < length, scores_BHQK, lowest)
    weights_BHQK = jax.nn.softmax(scores_BHQK, axis=-1)
    mask_shape = weights_BHQK.shape[-2:] if shared else weights_BHQK.shape
    weights_BHQK = dropout(weights_BHQK, rate, key, mask_shape).astype(v_BLHD.dtype)
    return jnp.einsum("bhqk,bkhd->bqhd", weights_BHQK, v_BLHD)


def _cudnn_attention(q_BLHD, k_BLHD, v_BLHD, key, rate, length):
    batch, num_tokens = q_BLHD.shape[:2]
    lengths_B = None if length == num_tokens else jnp.full((batch,), length, jnp.int32)
    mask = None
    if rate > 0:
        mask = keep_mask(key, rate, (num_tokens, num_tokens))[None, None]
    return jax.nn.dot_product_attention(
        q_BLHD,
        k_BLHD,
        v_BLHD,
        mask=mask,
        query_seq_lengths=lengths_B,
        key_value_seq_lengths=lengths_B,
        implementation="cudnn",
    )
