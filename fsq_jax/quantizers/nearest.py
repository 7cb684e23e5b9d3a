"""Look-ups in codebooks of any size: nearest codes, their vectors, and sums over their tokens.

A matrix of tokens by codes is made whole where it has at most `MAX_ELEMENTS` elements on a device;
beyond that codes are walked through in blocks, and sums are taken over sorted tokens, those of a
device first. Either way the same call gives the same result on every run.

Legend: N tokens  K codes  k codes of a block  D channels.
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from fsq_jax.runtime.placement import automatic, mesh_of_rows

MAX_ELEMENTS = 2**26  # of a device's tokens by codes: 256 MiB in float32
_MANY_TOKENS = 2**12  # what an unknown number of tokens (of a function that is exported) counts as
FAR = 1e15  # in each channel of a code that fills up a block: never the nearest


def block_size(num_tokens: int, num_codes: int) -> int:
    """Returns how many codes are compared with all tokens at once: `num_codes` where that fits.

    Blocks are powers of two, so that they come out even for the usual sizes.
    """
    tokens = num_tokens if isinstance(num_tokens, int) else _MANY_TOKENS
    most = max(1, MAX_ELEMENTS // max(1, tokens))
    return num_codes if num_codes <= most else 2 ** (most.bit_length() - 1)


def squared_distances(z_ND: jax.Array, codebook_KD: jax.Array) -> jax.Array:
    """Returns the squared Euclidean distance of every token to every codeword, [N, K].

    Expanded into |z|^2 - 2 z c + |c|^2, one matrix product, so that nothing of size N K D exists.
    """
    z_squared_N1 = jnp.sum(z_ND**2, axis=1, keepdims=True)
    codebook_squared_K = jnp.sum(codebook_KD**2, axis=1)
    return z_squared_N1 - 2 * matmul(z_ND, codebook_KD.T) + codebook_squared_K


def scores(z_ND: jax.Array, codebook_KD: jax.Array, squared_K: jax.Array) -> jax.Array:
    """Returns 2 z c - |c|^2, [N, K], of codewords and their squared lengths: |z|^2 less the squared
    distance, the larger the nearer.

    For softmaxes and their gradients, to which |z|^2 adds nothing but its rounding. That grows with
    |z|, is divided by the temperature, and its part in the gradient is multiplied by |z| again.
    """
    return matmul(2 * z_ND, codebook_KD.T) - squared_K


@automatic(rows=0)
def nearest(z_ND: jax.Array, codebook_KD: jax.Array) -> jax.Array:
    """Returns each token's nearest code, int32 [N], of equally near ones the lowest."""
    z_ND, codebook_KD = jax.lax.stop_gradient((z_ND, codebook_KD))

    if is_whole(z_ND, codebook_KD.shape[0]):
        return jnp.argmin(squared_distances(z_ND, codebook_KD), axis=1).astype(jnp.int32)

    def body(best, block):
        index_N, distance_N = best
        words_kD, start = block
        distances_Nk = squared_distances(z_ND, words_kD)
        at_N = jnp.argmin(distances_Nk, axis=1).astype(jnp.int32)
        least_N = distances_Nk.min(axis=1)
        is_nearer_N = least_N < distance_N
        index_N = jnp.where(is_nearer_N, start + at_N, index_N)
        return (index_N, jnp.where(is_nearer_N, least_N, distance_N)), None

    blocks = in_blocks(codebook_KD, z_ND)
    starts = jnp.arange(blocks.shape[0], dtype=jnp.int32) * blocks.shape[1]
    first = jnp.zeros(z_ND.shape[:1], jnp.int32), jnp.full(z_ND.shape[:1], jnp.inf)
    (index_N, _), _ = jax.lax.scan(body, first, (blocks, starts))
    return index_N


@automatic(rows=1)
def look_up(codebook_KD: jax.Array, indices_N: jax.Array) -> jax.Array:
    """Returns the codewords of valid indices, [N, D], with a gradient that is the same every time.

    Of a small codebook by a product rather than a gather: its gradient is a product too, which on a
    GPU gives the same sum on every run, and which a compiler can shard over the tokens. Of a large
    one by a gather, whose gradient is `sums`.
    """
    if is_whole(indices_N, codebook_KD.shape[0]):
        return matmul(jax.nn.one_hot(indices_N, codebook_KD.shape[0]), codebook_KD)
    return gather(codebook_KD, indices_N)


@automatic(rows=1)
def gather(codebook_KD: jax.Array, indices_N: jax.Array) -> jax.Array:
    """Returns the codewords of valid indices, [N, D]; its gradient is `sums`."""
    return _gather(codebook_KD.shape[0], codebook_KD, indices_N)


@automatic(rows=1)
def take(codebook_KD: jax.Array, indices: jax.Array) -> jax.Array:
    """Returns the codewords of indices of any shape, [..., D]; NaN where one is outside [0, K)."""
    # A negative index would count from the end.
    indices = jnp.where(indices < 0, codebook_KD.shape[0], indices)
    return jnp.take(codebook_KD, indices, axis=0, mode="fill", fill_value=jnp.nan)


@automatic()
def counts(indices_N: jax.Array, num_codes: int) -> jax.Array:
    """Returns how many tokens chose each code, float32 [K], exact below 2**24."""
    if is_whole(indices_N, num_codes):
        return jax.nn.one_hot(indices_N, num_codes).sum(axis=0)
    return jnp.bincount(indices_N, length=num_codes).astype(jnp.float32)


@automatic()
def sums(x_ND: jax.Array, indices_N: jax.Array, num_codes: int) -> jax.Array:
    """Returns the sum of the rows of x with each index, [K, D].

    By a product, or, where tokens by codes don't fit, over tokens that are sorted by their index:
    a segmented sum, whose order is fixed, where a scatter on a GPU adds in any. Each device of a
    mesh sorts its own tokens, since a sort of all would bring all of them to every device.
    """
    if is_whole(indices_N, num_codes):
        return matmul(jax.nn.one_hot(indices_N, num_codes).T, x_ND)
    mesh = mesh_of_rows(indices_N)
    if mesh is None:
        return _sums_of_sorted(x_ND, indices_N, num_codes)

    def of_a_device(x_nD, indices_n):
        return jax.lax.psum(_sums_of_sorted(x_nD, indices_n, num_codes), mesh.axis_names)

    cut = P(mesh.axis_names)
    return jax.shard_map(of_a_device, mesh=mesh, in_specs=(cut, cut), out_specs=P())(
        x_ND, indices_N
    )


def _sums_of_sorted(x_ND: jax.Array, indices_N: jax.Array, num_codes: int) -> jax.Array:
    order_N = jnp.argsort(indices_N)
    sorted_N = indices_N[order_N]
    is_first_N1 = jnp.append(True, sorted_N[1:] != sorted_N[:-1])[:, None]

    def add(left, right):
        (x_left, _), (x_right, is_first) = left, right
        return jnp.where(is_first, x_right, x_left + x_right), left[1] | is_first

    running_ND, _ = jax.lax.associative_scan(add, (x_ND[order_N], is_first_N1))
    counts_K = jnp.bincount(indices_N, length=num_codes)
    last_K = jnp.cumsum(counts_K) - 1  # of a code's tokens; one that none chose has another's
    return jnp.where(counts_K[:, None] > 0, running_ND[last_K], 0.0)


def in_blocks(codebook_KD: jax.Array, z_ND: jax.Array) -> jax.Array:
    """Returns the codebook as [blocks, k, D], filled up with codes that are far off."""
    size = block_size(_rows_of_a_device(z_ND), codebook_KD.shape[0])
    missing = -codebook_KD.shape[0] % size
    padded = jnp.pad(codebook_KD, ((0, missing), (0, 0)), constant_values=FAR)
    return padded.reshape(-1, size, codebook_KD.shape[1])


def is_whole(x: jax.Array, num_codes: int) -> bool:
    """Whether tokens by codes fit; x has a row per token."""
    return block_size(_rows_of_a_device(x), num_codes) == num_codes


def _rows_of_a_device(x: jax.Array) -> int:
    mesh = mesh_of_rows(x)
    return x.shape[0] // (mesh.size if mesh else 1)


def matmul(a: jax.Array, b: jax.Array) -> jax.Array:
    """A product in float32 on every device."""
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _gather(num_codes, codebook_KD, indices_N):
    del num_codes  # of the gradient
    return codebook_KD[indices_N]


def _gather_fwd(num_codes, codebook_KD, indices_N):
    return _gather(num_codes, codebook_KD, indices_N), indices_N


def _gather_bwd(num_codes, indices_N, gradient_ND):
    return sums(gradient_ND, indices_N, num_codes), None


_gather.defvjp(_gather_fwd, _gather_bwd)
