"""VQ's entropy loss over tokens' soft choices of codes, of a whole matrix of them or in blocks.

Legend: N tokens  K codes  k codes of a block  b blocks  D channels  G groups of examples.
"""

import functools

import jax
import jax.numpy as jnp

from fsq_jax.quantizers import nearest
from fsq_jax.runtime.placement import automatic


@automatic()
def loss(
    z_ND: jax.Array,
    codebook_KD: jax.Array,
    temperature: float,
    num_groups: int = 1,
    examples: int = 1,
) -> jax.Array:
    """Returns `of_distances` of tokens to codewords, with nothing of size N K where that is too
    large for a device (`nearest.MAX_ELEMENTS`)."""
    if nearest.is_whole(z_ND, codebook_KD.shape[0]):
        scores_NK = nearest.scores(z_ND, codebook_KD, (codebook_KD**2).sum(axis=1))
        return of_distances(-scores_NK, temperature, num_groups, examples)
    return _in_blocks((temperature, num_groups, examples), z_ND, codebook_KD)


def of_distances(
    distances_NK: jax.Array, temperature: float, num_groups: int = 1, examples: int = 1
) -> jax.Array:
    """Returns the mean entropy of a token's soft choice less the entropy of the mean choice.

    Low when every token is sure of its codeword and all codewords are chosen alike; at least
    -log K. The choice is softmax(-distance / temperature); 1e-5 keeps the outer log finite.
    Distances are squared ones, or these less any number of each token's own (`nearest.scores`).

    With `num_groups` G the mean choice is one of each group, and the loss the groups' mean, as
    where each of G devices takes it over its own tokens. The rows are those of `examples` examples
    one after the other; group g has examples g, g + G, g + 2 G, ..., so that a batch has the same
    groups whether it comes whole or in microbatches (`optim.accumulate` deals its rows in turn).
    """
    log_p_NK = jax.nn.log_softmax(-distances_NK / temperature)
    p_NK = jnp.exp(log_p_NK)
    token_entropy = -jnp.mean(jnp.sum(p_NK * log_p_NK, axis=1))
    mean_p_GK = mean_choices(p_NK, num_groups, examples)
    return token_entropy + jnp.sum(mean_p_GK * jnp.log(mean_p_GK + 1e-5), axis=1).mean()


def mean_choices(p_NK: jax.Array, num_groups: int, examples: int) -> jax.Array:
    """Returns the mean over the tokens of each group of examples, [G, K]; see `of_distances`."""
    if num_groups == 1:
        return p_NK.mean(axis=0, keepdims=True)
    rows = (examples // num_groups, num_groups, -1, p_NK.shape[1])
    return p_NK.reshape(rows).mean(axis=(0, 2))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _in_blocks(options, z_ND, codebook_KD):
    """The loss in two walks over the codes.

    The first takes each token's normaliser and entropy, the second the mean choice of each code.
    The gradient takes two more, so that nothing of size N K is kept.

    With p a token's soft choice and a the slope of the second term in its group's mean choice, the
    gradient by a logit is p (v - mean v) / N, where v = a - log p and the mean over the codes is
    weighted by p. These add up to 0 over the codes only if all walks find the same p. At a low
    temperature the last bit of a logit of hundreds is several percent of p, and compilers round
    differently from walk to walk. Hence a logit is a product less one number of its code and one of
    its token, made once for all walks; what is left to round is small wherever p is not.
    """
    return _in_blocks_fwd(options, z_ND, codebook_KD)[0]


def _in_blocks_fwd(options, z_ND, codebook_KD):
    temperature, num_groups, examples = options
    words_bkD = nearest.in_blocks(codebook_KD, z_ND)
    blocks = words_bkD, (words_bkD**2).sum(axis=2)

    def add(moments, block):
        best_N1, sum_N1, weighted_N1 = moments
        score_Nk = nearest.scores(z_ND, *block)
        better_N1 = jnp.maximum(best_N1, score_Nk.max(axis=1, keepdims=True))
        shift_N1 = (best_N1 - better_N1) / temperature
        logit_Nk = (score_Nk - better_N1) / temperature
        weight_Nk = jnp.exp(logit_Nk)
        sum_here_N1 = weight_Nk.sum(axis=1, keepdims=True)
        weighted_here_N1 = (weight_Nk * logit_Nk).sum(axis=1, keepdims=True)
        weighted_N1 = jnp.exp(shift_N1) * (weighted_N1 + shift_N1 * sum_N1) + weighted_here_N1
        return (better_N1, jnp.exp(shift_N1) * sum_N1 + sum_here_N1, weighted_N1), None

    zeros_N1 = jnp.zeros_like(z_ND[:, :1])
    first = zeros_N1 - nearest.FAR, zeros_N1, zeros_N1  # finite: it is multiplied by a sum of 0
    (best_N1, sum_N1, weighted_N1), _ = jax.lax.scan(add, first, blocks)
    token_entropy = jnp.mean(jnp.log(sum_N1) - weighted_N1 / sum_N1)
    normaliser = best_N1, jnp.log(sum_N1)

    def mean_choice(_, block):
        p_Nk = jnp.exp(_log_choices(z_ND, block, normaliser, temperature))
        return None, mean_choices(p_Nk, num_groups, examples)

    mean_p_bGk = jax.lax.scan(mean_choice, None, blocks)[1]
    choices_G = (mean_p_bGk * jnp.log(mean_p_bGk + 1e-5)).sum(axis=(0, 2))
    return token_entropy + choices_G.mean(), (z_ND, codebook_KD, blocks, normaliser, mean_p_bGk)


def _in_blocks_bwd(options, kept, gradient):
    temperature, _, examples = options
    z_ND, codebook_KD, blocks, normaliser, mean_p_bGk = kept
    slope_bGk = jnp.log(mean_p_bGk + 1e-5) + mean_p_bGk / (mean_p_bGk + 1e-5)
    scale = gradient / z_ND.shape[0] * 2 / temperature  # a score is 2 z c - |c|^2

    def choices(block, slope_Gk):
        """p and v of a block's codes, [N, k]."""
        log_p_Nk = _log_choices(z_ND, block, normaliser, temperature)
        return jnp.exp(log_p_Nk), _of_each_token(slope_Gk, z_ND, examples) - log_p_Nk

    def add_mean(sums, block):
        p_Nk, v_Nk = choices(*block)
        here = p_Nk.sum(axis=1, keepdims=True), (p_Nk * v_Nk).sum(axis=1, keepdims=True)
        return jax.tree.map(jnp.add, sums, here), None

    zeros_N1 = jnp.zeros_like(z_ND[:, :1])
    (sum_N1, weighted_N1), _ = jax.lax.scan(add_mean, (zeros_N1, zeros_N1), (blocks, slope_bGk))
    mean_v_N1 = weighted_N1 / sum_N1

    def add_gradient(z_gradient_ND, block):
        p_Nk, v_Nk = choices(*block)
        g_Nk = scale * p_Nk * (v_Nk - mean_v_N1)
        words_kD = block[0][0]
        words_gradient_kD = nearest.matmul(g_Nk.T, z_ND) - g_Nk.sum(axis=0)[:, None] * words_kD
        return z_gradient_ND + nearest.matmul(g_Nk, words_kD), words_gradient_kD

    z_gradient_ND, words_gradient_bkD = jax.lax.scan(
        add_gradient, jnp.zeros_like(z_ND), (blocks, slope_bGk)
    )
    shape = codebook_KD.shape
    return z_gradient_ND, words_gradient_bkD.reshape(-1, shape[1])[: shape[0]]


_in_blocks.defvjp(_in_blocks_fwd, _in_blocks_bwd)


def _log_choices(z_ND, block, normaliser, temperature):
    """The logarithm of each token's soft choice of the codes of a block, [N, k]."""
    best_N1, log_sum_N1 = normaliser
    return (nearest.scores(z_ND, *block) - best_N1) / temperature - log_sum_N1


def _of_each_token(x_Gk, z_ND, examples):
    """What each group of examples has, of each of its tokens: the transpose of `mean_choices`."""
    groups, codes = x_Gk.shape
    if groups == 1:
        return x_Gk
    rows = (examples // groups, groups, z_ND.shape[0] // examples, codes)
    return jnp.broadcast_to(x_Gk[:, None], rows).reshape(-1, codes)
