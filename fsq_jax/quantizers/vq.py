"""Vector quantization, what the FSQ paper compares with: MaskGIT's layer and UViM's.

`VectorQuantizer` learns its codebook by gradient, with codebook, commitment and entropy losses.
`EMAVectorQuantizer` keeps running sums of the vectors that chose each word, and splits busy words
to revive idle ones. Both compute in float32 and return the `Quantized` of fsq.py. Every mean and
sum runs over the whole batch, unless `entropy_group` says otherwise: under jit with sharded arrays
that is the global batch, and the compiler adds the communication.

Legend: N tokens (all leading dimensions flattened)  K codes  D channels  G groups of examples.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from fsq_jax.quantizers import running_codebook
from fsq_jax.quantizers.fsq import Quantized
from fsq_jax.runtime.user_error import UserError

STATE, BATCH = "codebook_state", "codebook_batch"  # collections of EMAVectorQuantizer


def squared_distances(z_ND: jax.Array, codebook_KD: jax.Array) -> jax.Array:
    """Returns the squared Euclidean distance of every token to every codeword, [N, K].

    Expanded into |z|^2 - 2 z c + |c|^2, one matrix product, so that nothing of size N K D exists.
    """
    z_squared_N1 = jnp.sum(z_ND**2, axis=1, keepdims=True)
    codebook_squared_K = jnp.sum(codebook_KD**2, axis=1)
    return z_squared_N1 - 2 * _matmul(z_ND, codebook_KD.T) + codebook_squared_K


def entropy_loss(
    distances_NK: jax.Array, temperature: float, num_groups: int = 1, examples: int = 1
) -> jax.Array:
    """Returns the mean entropy of a token's soft choice less the entropy of the mean choice.

    Low when every token is sure of its codeword and all codewords are chosen alike; at least
    -log K. The choice is softmax(-distance / temperature); 1e-5 keeps the outer log finite.

    With `num_groups` G the mean choice is one of each group, and the loss the groups' mean, as
    where each of G devices takes it over its own tokens. The rows are those of `examples` examples
    one after the other; group g has examples g, g + G, g + 2 G, ..., so that a batch has the same
    groups whether it comes whole or in microbatches (`optim.accumulate` deals its rows in turn).
    """
    log_p_NK = jax.nn.log_softmax(-distances_NK / temperature)
    p_NK = jnp.exp(log_p_NK)
    token_entropy = -jnp.mean(jnp.sum(p_NK * log_p_NK, axis=1))
    if num_groups == 1:
        mean_p_GK = jnp.mean(p_NK, axis=0, keepdims=True)
    else:
        rows = (examples // num_groups, num_groups, -1, p_NK.shape[1])
        mean_p_GK = jnp.mean(p_NK.reshape(rows), axis=(0, 2))
    return token_entropy + jnp.sum(mean_p_GK * jnp.log(mean_p_GK + 1e-5), axis=1).mean()


class VectorQuantizer(nn.Module):
    """MaskGIT's quantizer: nearest codeword, codebook and encoder trained by three losses.

    codebook_size: K, at least 2. channels: D, the width of z and of a codeword.
    codebook_weight, commitment_weight: of mean (codeword - sg(z))^2 and mean (sg(codeword) - z)^2.
    entropy_weight, entropy_temperature: of `entropy_loss`; weight 0 leaves it out.
    entropy_group: examples (rows of z) whose mean choice the entropy is of, 0 for all that come
      in one call. MaskGIT takes those of one device.
    normalize: compare and return vectors of unit length (MAGVIT's option; MaskGIT has it off).
    The codebook is the parameter "codebook" [K, D], initially U(-sqrt(3 / K), sqrt(3 / K)).
    """

    codebook_size: int
    channels: int
    codebook_weight: float = 1.0
    commitment_weight: float = 0.25
    entropy_weight: float = 0.1
    entropy_temperature: float = 0.01
    entropy_group: int = 0
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
        Raises UserError in training for examples that don't divide by `entropy_group`.
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
            groups = self._entropy_groups(z.shape, train)
            metrics["entropy_loss"] = entropy_loss(
                distances_NK, self.entropy_temperature, groups, z.shape[0]
            )
            loss += self.entropy_weight * metrics["entropy_loss"]
        return _quantized(z, z_ND, q_ND, indices_N, loss, metrics)

    def indices_to_codes(self, indices: jax.Array) -> jax.Array:
        """Returns codewords [..., D] of indices [...]; NaN where an index is outside [0, K)."""
        return _look_up(self._codewords(), indices)

    def _codewords(self) -> jax.Array:
        return _unit(self.codebook) if self.normalize else self.codebook

    def _entropy_groups(self, shape: tuple[int, ...], train: bool) -> int:
        """How many groups the examples of z make; those that don't make whole ones are one."""
        examples, group = shape[0], self.entropy_group
        if group and not examples % group:
            return examples // group
        if group and train and examples > group:
            raise UserError(f"entropy_group={group} doesn't divide the {examples} examples.")
        return 1


class EMAVectorQuantizer(nn.Module):
    """UViM's quantizer: nearest of K unit-length codewords, each a running mean of its tokens.

    codebook_size: K, at least 2. channels: D, the width of z and of a codeword.
    momentum: of the running counts and sums, per step.
    commitment_weight: of mean (codeword - z)^2; UViM's configs set 0.
    standardize: bring every token to mean 0 and variance 1 over its channels first.
    split_threshold: words that count less are revived by `running_codebook.split_idle_words`; 0
      switches it off.

    Collection "codebook_state": `dictionary` [K, D], the sums, and `counts` [K]. They are updated
    after the look-up, in calls with train=True where the collection is mutable; in others the
    codebook is frozen. Splitting draws from the rng stream "codebook".

    Where several calls make up a step, "codebook_batch" is made mutable instead: each call leaves
    its tokens' `counts` and `sums` there, and `after_step` takes what they add up to.
    """

    codebook_size: int
    channels: int
    momentum: float = 0.995
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
            STATE, "dictionary", lambda: init(self.make_rng("params"), shape)
        )
        self.counts = self.variable(STATE, "counts", jnp.ones, shape[:1])

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
        if train and not self.is_initializing():
            self._learn(chosen_NK, jax.lax.stop_gradient(z_ND))

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

    def after_step(self, state, batch, key):
        """Returns the variables of "codebook_state" after a step, of those before it and of the
        sum of what its calls left in "codebook_batch"; `key` draws the splitting's noise."""
        return running_codebook.after_step(state, batch, self.momentum, self.split_threshold, key)

    def _learn(self, chosen_NK: jax.Array, z_ND: jax.Array) -> None:
        if not (self.is_mutable_collection(BATCH) or self.is_mutable_collection(STATE)):
            return
        # A product rather than a scatter: the same sum on every run (see VectorQuantizer).
        batch = {"counts": chosen_NK.sum(axis=0), "sums": _matmul(chosen_NK.T, z_ND)}
        if self.is_mutable_collection(BATCH):
            for name, value in batch.items():
                self.put_variable(BATCH, name, value)
            return
        if self.split_threshold > 0 and not self.has_rng("codebook"):
            raise UserError(
                "EMAVectorQuantizer splits codewords in training and needs "
                'rngs={"codebook": key}; split_threshold=0 switches splitting off.'
            )
        key = self.make_rng("codebook") if self.split_threshold > 0 else None
        state = {"counts": self.counts.value, "dictionary": self.dictionary.value}
        state = self.after_step(state, batch, key)
        self.counts.value, self.dictionary.value = state["counts"], state["dictionary"]


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
