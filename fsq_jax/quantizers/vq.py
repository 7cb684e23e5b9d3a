"""Vector quantization, what the FSQ paper compares with: MaskGIT's layer and UViM's.

`VectorQuantizer` learns its codebook by gradient, with codebook, commitment and entropy losses.
`EMAVectorQuantizer` keeps running sums of the vectors that chose each word, and splits busy words
to revive idle ones. Both compute in float32 and return the `Quantized` of fsq.py. Every mean and
sum runs over the whole batch: under jit with sharded arrays that is the global batch, and the
compiler adds the communication.

Legend: N tokens (all leading dimensions flattened)  K codes  D channels.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from fsq_jax.quantizers.fsq import Quantized
from fsq_jax.runtime.user_error import UserError


def squared_distances(z_ND: jax.Array, codebook_KD: jax.Array) -> jax.Array:
    """Returns the squared Euclidean distance of every token to every codeword, [N, K].

    Expanded into |z|^2 - 2 z c + |c|^2, one matrix product, so that nothing of size N K D exists.
    """
    z_squared_N1 = jnp.sum(z_ND**2, axis=1, keepdims=True)
    codebook_squared_K = jnp.sum(codebook_KD**2, axis=1)
    return z_squared_N1 - 2 * _matmul(z_ND, codebook_KD.T) + codebook_squared_K


def entropy_loss(distances_NK: jax.Array, temperature: float) -> jax.Array:
    """Returns the mean entropy of a token's soft choice less the entropy of the mean choice.

    Low when every token is sure of its codeword and all codewords are chosen alike; at least
    -log K. The choice is softmax(-distance / temperature); 1e-5 keeps the outer log finite.
    """
    log_p_NK = jax.nn.log_softmax(-distances_NK / temperature)
    p_NK = jnp.exp(log_p_NK)
    token_entropy = -jnp.mean(jnp.sum(p_NK * log_p_NK, axis=1))
    mean_p_K = jnp.mean(p_NK, axis=0)
    return token_entropy + jnp.sum(mean_p_K * jnp.log(mean_p_K + 1e-5))


def split_idle_words(
    counts_K: jax.Array, sums_KD: jax.Array, key: jax.Array, threshold: float
) -> tuple[jax.Array, jax.Array]:
    """Returns counts and sums in which no word counts less than `threshold`, if there is a way.

    Again and again the least used word becomes a copy of the most used one, each coordinate times
    U(0.999, 1.001), and both get half of its count and sum. Stops when all counts reach the
    threshold, or when half of the largest would not; so after K - 1 splits at the latest.
    """

    def can_split(carry):
        counts_K, _, _ = carry
        return (counts_K.min() < threshold) & (counts_K.max() >= 2 * threshold)

    def split(carry):
        counts_K, sums_KD, step = carry
        idle, busy = jnp.argmin(counts_K), jnp.argmax(counts_K)
        count, sum_D = counts_K[busy] / 2, sums_KD[busy] / 2
        noise_D = _perturbation(jax.random.fold_in(key, step), sum_D.shape)
        counts_K = counts_K.at[idle].set(count).at[busy].set(count)
        sums_KD = sums_KD.at[idle].set(sum_D * noise_D).at[busy].set(sum_D)
        return counts_K, sums_KD, step + 1

    counts_K, sums_KD, _ = jax.lax.while_loop(can_split, split, (counts_K, sums_KD, 0))
    return counts_K, sums_KD


class VectorQuantizer(nn.Module):
    """MaskGIT's quantizer: nearest codeword, codebook and encoder trained by three losses.

    codebook_size: K, at least 2. channels: D, the width of z and of a codeword.
    codebook_weight, commitment_weight: of mean (codeword - sg(z))^2 and mean (sg(codeword) - z)^2.
    entropy_weight, entropy_temperature: of `entropy_loss`; weight 0 leaves it out.
    normalize: compare and return vectors of unit length (MAGVIT's option; MaskGIT has it off).
    The codebook is the parameter "codebook" [K, D], initially U(-sqrt(3 / K), sqrt(3 / K)).
    """

    codebook_size: int
    channels: int
    codebook_weight: float = 1.0
    commitment_weight: float = 0.25
    entropy_weight: float = 0.1
    entropy_temperature: float = 0.01
    normalize: bool = False

    def __post_init__(self):
        _check_sizes(self.codebook_size, self.channels)
        super().__post_init__()

    def setup(self):
        init = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")
        shape = (self.codebook_size, self.channels)
        self.codebook = self.param("codebook", init, shape, jnp.float32)

    def __call__(self, z: jax.Array, train: bool = False) -> Quantized:
        """Quantizes z, [..., D]; training and evaluation do the same.

        metrics: the losses before their weights, and the batch's `perplexity`, 1 to K.
        """
        z_ND = _flatten(z, self.channels)
        codebook_KD = self._codewords()
        if self.normalize:
            z_ND = _unit(z_ND)
        distances_NK = squared_distances(z_ND, codebook_KD)
        indices_N = jnp.argmin(distances_NK, axis=1).astype(jnp.int32)
        # A product rather than a gather: its gradient is a product too, which on a GPU gives the
        # same sum on every run, and which a compiler can shard over the tokens.
        chosen_NK = jax.nn.one_hot(indices_N, self.codebook_size)
        q_ND = _matmul(chosen_NK, codebook_KD)

        metrics = {
            "codebook_loss": jnp.mean((q_ND - jax.lax.stop_gradient(z_ND)) ** 2),
            "commitment_loss": jnp.mean((jax.lax.stop_gradient(q_ND) - z_ND) ** 2),
            "perplexity": _perplexity(chosen_NK.mean(axis=0)),
        }
        loss = self.codebook_weight * metrics["codebook_loss"]
        loss += self.commitment_weight * metrics["commitment_loss"]
        if self.entropy_weight:
            metrics["entropy_loss"] = entropy_loss(distances_NK, self.entropy_temperature)
            loss += self.entropy_weight * metrics["entropy_loss"]
        return _quantized(z, z_ND, q_ND, indices_N, loss, metrics)

    def indices_to_codes(self, indices: jax.Array) -> jax.Array:
        """Returns codewords [..., D] of indices [...]; NaN where an index is outside [0, K)."""
        return _look_up(self._codewords(), indices)

    def _codewords(self) -> jax.Array:
        return _unit(self.codebook) if self.normalize else self.codebook


class EMAVectorQuantizer(nn.Module):
    """UViM's quantizer: nearest of K unit-length codewords, each a running mean of its tokens.

    codebook_size: K, at least 2. channels: D, the width of z and of a codeword.
    momentum: of the running counts and sums, a step.
    microbatches: calls that make up a step; each then fades by its share of the momentum.
    commitment_weight: of mean (codeword - z)^2; UViM's configs set 0.
    standardize: bring every token to mean 0 and variance 1 over its channels first.
    split_threshold: words that count less are revived by `split_idle_words`; 0 switches it off.

    Collection "codebook_state": `dictionary` [K, D], the sums, and `counts` [K]. They are updated
    after the look-up, in calls with train=True where the collection is mutable; in others the
    codebook is frozen. Splitting draws from the rng stream "codebook".
    """

    codebook_size: int
    channels: int
    momentum: float = 0.995
    microbatches: int = 1
    commitment_weight: float = 0.0
    standardize: bool = True
    split_threshold: float = 0.1

    def __post_init__(self):
        _check_sizes(self.codebook_size, self.channels)
        super().__post_init__()

    def setup(self):
        shape = (self.codebook_size, self.channels)
        init = nn.initializers.normal(self.codebook_size**-0.5)
        self.dictionary = self.variable(
            "codebook_state", "dictionary", lambda: init(self.make_rng("params"), shape)
        )
        self.counts = self.variable("codebook_state", "counts", jnp.ones, shape[:1])

    def __call__(self, z: jax.Array, train: bool = False) -> Quantized:
        """Quantizes z, [..., D], and in training updates the codebook for the next call.

        metrics: `commitment_loss` before its weight, the batch's `perplexity`, the share of words
        that no token chose (`unused`) and of tokens that chose the favourite (`max_share`).
        """
        z_ND = _flatten(z, self.channels)
        if self.standardize:
            z_ND = _standardize(z_ND)
        codebook_KD = self._codewords()
        distances_NK = squared_distances(jax.lax.stop_gradient(z_ND), codebook_KD)
        indices_N = jnp.argmin(distances_NK, axis=1).astype(jnp.int32)
        q_ND = codebook_KD[indices_N]
        chosen_NK = jax.nn.one_hot(indices_N, self.codebook_size)
        if train and self.is_mutable_collection("codebook_state") and not self.is_initializing():
            self._update(chosen_NK, jax.lax.stop_gradient(z_ND))

        share_K = chosen_NK.mean(axis=0)
        metrics = {
            "commitment_loss": jnp.mean((q_ND - z_ND) ** 2),
            "perplexity": _perplexity(share_K),
            "unused": jnp.mean(share_K == 0),
            "max_share": share_K.max(),
        }
        loss = self.commitment_weight * metrics["commitment_loss"]
        return _quantized(z, z_ND, q_ND, indices_N, loss, metrics)

    def indices_to_codes(self, indices: jax.Array) -> jax.Array:
        """Returns codewords [..., D] of indices [...]; NaN where an index is outside [0, K)."""
        return _look_up(self._codewords(), indices)

    def _codewords(self) -> jax.Array:
        # The mean of a word is its sum over its count, but only the direction is kept. No gradient:
        # the codebook is state.
        return jax.lax.stop_gradient(_unit(self.dictionary.value))

    def _update(self, chosen_NK: jax.Array, z_ND: jax.Array) -> None:
        # A word that stays idle without splitting would fade to 0 / 0 after some 17,000 steps. It
        # stops fading at 1e-9, which next to one new token is nothing in float32.
        decay = self.momentum ** (1 / self.microbatches)
        decay_K = jnp.where(self.counts.value > 1e-9, decay, 1.0)
        counts_K = decay_K * self.counts.value + chosen_NK.sum(axis=0)
        # A product rather than a scatter: the same sum on every run (see VectorQuantizer).
        sums_KD = decay_K[:, None] * self.dictionary.value + _matmul(chosen_NK.T, z_ND)
        if self.split_threshold > 0:
            if not self.has_rng("codebook"):
                raise UserError(
                    "EMAVectorQuantizer splits codewords in training and needs "
                    'rngs={"codebook": key}; split_threshold=0 switches splitting off.'
                )
            key = self.make_rng("codebook")
            counts_K, sums_KD = split_idle_words(counts_K, sums_KD, key, self.split_threshold)
        self.counts.value, self.dictionary.value = counts_K, sums_KD


def _quantized(z, z_ND, q_ND, indices_N, loss, metrics) -> Quantized:
    """Shapes the result like z, with the straight-through gradient: the codeword's value exactly
    (z - sg(z) is 0), the gradient that of z."""
    codes_ND = jax.lax.stop_gradient(q_ND) + (z_ND - jax.lax.stop_gradient(z_ND))
    return Quantized(
        codes=codes_ND.reshape(z.shape),
        indices=indices_N.reshape(z.shape[:-1]),
        loss=jnp.asarray(loss, jnp.float32),
        metrics=metrics,
    )


def _matmul(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)  # float32 on every device


def _flatten(z: jax.Array, channels: int) -> jax.Array:
    if z.ndim == 0 or z.shape[-1] != channels:
        raise UserError(f"The last dimension of z, of shape {z.shape}, must be {channels=}.")
    return z.astype(jnp.float32).reshape(-1, channels)


def _perturbation(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return jax.random.uniform(key, shape, minval=0.999, maxval=1.001)


def _look_up(codebook_KD: jax.Array, indices: jax.Array) -> jax.Array:
    # A negative index would count from the end.
    indices = jnp.where(indices < 0, codebook_KD.shape[0], indices)
    return jnp.take(codebook_KD, indices, axis=0, mode="fill", fill_value=jnp.nan)


def _unit(x_ND: jax.Array) -> jax.Array:
    return x_ND * jax.lax.rsqrt(jnp.sum(x_ND**2, axis=1, keepdims=True) + 1e-30)


def _standardize(x_ND: jax.Array) -> jax.Array:
    mean_N1 = x_ND.mean(axis=1, keepdims=True)
    return (x_ND - mean_N1) * jax.lax.rsqrt(x_ND.var(axis=1, keepdims=True) + 1e-5)


def _perplexity(share_K: jax.Array) -> jax.Array:
    return jnp.exp(-jnp.sum(jax.scipy.special.xlogy(share_K, share_K)))


def _check_sizes(codebook_size: int, channels: int) -> None:
    if codebook_size < 2 or channels < 1:
        raise UserError(
            f"A codebook needs at least 2 codes and 1 channel, not {codebook_size=}, {channels=}."
        )
