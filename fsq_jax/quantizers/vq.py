"""Vector quantization, what the FSQ paper compares with: MaskGIT's layer and UViM's.

`VectorQuantizer` learns its codebook by gradient, with codebook, commitment and entropy losses.
`EMAVectorQuantizer` keeps running sums of the vectors that chose each word, and splits busy words
to revive idle ones, or puts tokens in their place. Both compute in float32 and return the
`Quantized` of fsq.py. Every mean and sum runs over the whole batch, unless `entropy_group` says
otherwise: under jit with sharded arrays that is the global batch, and the compiler adds the
communication.

Legend: N tokens (all leading dimensions flattened)  K codes  D channels  G groups of examples.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from fsq_jax.quantizers import entropy, nearest, running_codebook
from fsq_jax.quantizers.codebook import STATE, Codebook, perplexity, standardize, unit
from fsq_jax.quantizers.fsq import Quantized
from fsq_jax.runtime.user_error import UserError

BATCH = "codebook_batch"  # collection in which EMAVectorQuantizer leaves what a step is made of
PART = "codebook_part"  # collection that says which part of a step's batch a call sees


class VectorQuantizer(Codebook):
    """MaskGIT's quantizer: nearest codeword, codebook and encoder trained by three losses.

    codebook_weight, commitment_weight: of mean (codeword - sg(z))^2 and mean (sg(codeword) - z)^2.
    entropy_weight, entropy_temperature: of `entropy.loss`; weight 0 leaves it out.
    entropy_group: examples (rows of z) whose mean choice the entropy is of, 0 for all that come
      in one call. MaskGIT takes those of one device.
    normalize: compare and return vectors of unit length (MAGVIT's option; MaskGIT has it off): the
      nearest is the word of the largest cosine. `use_cosine_sim` of vector-quantize-pytorch does
      so with running means, and not with a codebook that is a parameter: see EMAVectorQuantizer.
    The codebook is the parameter "codebook" [K, D], initially U(-sqrt(3 / K), sqrt(3 / K)).
    """

    codebook_weight: float = 1.0
    commitment_weight: float = 0.25
    entropy_weight: float = 0.1
    entropy_temperature: float = 0.01
    entropy_group: int = 0
    normalize: bool = False

    def setup(self):
        super().setup()
        init = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")
        shape = (self.codebook_size, self.width)
        self.codebook = self.param("codebook", init, shape, jnp.float32)

    def __call__(self, z: jax.Array, train: bool = False) -> Quantized:
        """Quantizes z, [..., C]; training and evaluation do the same.

        metrics: the losses before their weights, and the batch's `perplexity`, 1 to K.
        Raises UserError in training for examples that don't divide by `entropy_group`.
        """
        z_ND, codebook_KD = self.tokens(z), self.codewords()
        if self.normalize:
            z_ND = unit(z_ND)
        indices_N = nearest.nearest(z_ND, codebook_KD)
        entropy_loss = self._entropy_loss(z_ND, codebook_KD, z.shape, train)
        q_ND = nearest.look_up(codebook_KD, indices_N)

        metrics = {
            "codebook_loss": jnp.mean((q_ND - jax.lax.stop_gradient(z_ND)) ** 2),
            "commitment_loss": jnp.mean((jax.lax.stop_gradient(q_ND) - z_ND) ** 2),
            "perplexity": perplexity(self.share(indices_N)),
        } | entropy_loss
        loss = self.codebook_weight * metrics["codebook_loss"]
        loss += self.commitment_weight * metrics["commitment_loss"]
        if self.entropy_weight:
            loss += self.entropy_weight * metrics["entropy_loss"]
        return self.quantized(z, z_ND, q_ND, indices_N, loss, metrics)

    def codewords(self) -> jax.Array:
        return unit(self.codebook) if self.normalize else self.codebook

    def _entropy_loss(self, z_ND, codebook_KD, shape, train: bool) -> dict[str, jax.Array]:
        if not self.entropy_weight:
            return {}
        options = self.entropy_temperature, self._entropy_groups(shape, train), shape[0]
        return {"entropy_loss": entropy.loss(z_ND, codebook_KD, *options)}

    def _entropy_groups(self, shape: tuple[int, ...], train: bool) -> int:
        """How many groups the examples of z make; those that don't make whole ones are one."""
        examples, group = shape[0], self.entropy_group
        if group and not examples % group:
            return examples // group
        if group and train and examples > group:
            raise UserError(f"entropy_group={group} doesn't divide the {examples} examples.")
        return 1


class EMAVectorQuantizer(Codebook):
    """Nearest of K codewords that are running means of their tokens: UViM's quantizer by default.

    momentum: of the running counts and sums, per step.
    commitment_weight: of mean (codeword - z)^2; UViM's configs set 0.
    standardize: bring every token to mean 0 and variance 1 over its channels first.
    normalize: bring every token to unit length first.
    unit_words: keep of a mean its direction alone. Without, it is the plain mean.
    split_threshold: words that count less are revived by `running_codebook.split_idle_words`; 0
      switches it off.
    reseed_threshold: words that fewer tokens a step choose, on the running average, are replaced by
      random tokens of the step's batch (`running_codebook.reseed`); 0 switches it off. Only here,
      and not where the codebook is a parameter, whose optimizer and average over the steps would
      go on from the word that was.

    standardize=False, split_threshold=0, momentum=0.8, commitment_weight=1 and gradient="rotation"
    make the default of vector-quantize-pytorch 1.32 with unit_words=False, and its use_cosine_sim
    with normalize=True; its threshold_ema_dead_code is reseed_threshold.

    Collection "codebook_state": `dictionary` [K, D], the sums, and `counts` [K]. They are updated
    after the look-up, in calls with train=True where the collection is mutable; in others the
    codebook is frozen. Splitting and reseeding draw from the rng stream "codebook".

    Where several calls make up a step, "codebook_batch" is made mutable instead: each call leaves
    its tokens' `counts` and `sums` there, and `after_step` takes what they add up to. For reseeding
    each must know which part of the step it is, by what `quantizers.part_of_step` gives.
    """

    momentum: float = 0.995
    commitment_weight: float = 0.0
    standardize: bool = True
    normalize: bool = False
    unit_words: bool = True
    split_threshold: float = 0.1
    reseed_threshold: float = 0.0

    def __post_init__(self):
        for first, second in (
            ("standardize", "normalize"),
            ("split_threshold", "reseed_threshold"),
        ):
            if (one := getattr(self, first)) and (other := getattr(self, second)):
                raise UserError(
                    f"{first}={one} and {second}={other} exclude each other: switch one off."
                )
        super().__post_init__()

    def setup(self):
        super().setup()
        shape = (self.codebook_size, self.width)
        init = nn.initializers.normal(self.codebook_size**-0.5)
        # UViM's first words count one token each, vector-quantize-pytorch's one token a step.
        count = 1.0 if self.unit_words else 1 / (1 - self.momentum)
        self.dictionary = self.variable(
            STATE, "dictionary", lambda: count * init(self.make_rng("params"), shape)
        )
        self.counts = self.variable(
            STATE, "counts", lambda: jnp.full(shape[:1], count, jnp.float32)
        )

    def __call__(self, z: jax.Array, train: bool = False) -> Quantized:
        """Quantizes z, [..., C], and in training updates the codebook for the next call.

        metrics: `commitment_loss` before its weight, the batch's `perplexity`, the share of words
        that no token chose (`unused`) and of tokens that chose the favourite (`max_share`).
        """
        z_ND, codebook_KD = self.tokens(z), self.codewords()
        if self.standardize:
            z_ND = standardize(z_ND)
        if self.normalize:
            z_ND = unit(z_ND)
        indices_N = nearest.nearest(z_ND, codebook_KD)
        q_ND = nearest.gather(codebook_KD, indices_N)
        if train and not self.is_initializing():
            self._learn(
                jax.lax.stop_gradient(z_ND), indices_N, examples=z.shape[0] if z.ndim > 1 else 1
            )

        share_K = self.share(indices_N)
        metrics = {
            "commitment_loss": jnp.mean((q_ND - z_ND) ** 2),
            "perplexity": perplexity(share_K),
            "unused": jnp.mean(share_K == 0),
            "max_share": share_K.max(),
        }
        loss = self.commitment_weight * metrics["commitment_loss"]
        return self.quantized(z, z_ND, q_ND, indices_N, loss, metrics)

    def codewords(self) -> jax.Array:
        # No gradient: the codebook is state.
        sums_KD, counts_K = jax.lax.stop_gradient((self.dictionary.value, self.counts.value))
        if self.unit_words:
            return unit(sums_KD)
        return running_codebook.means(counts_K, sums_KD, self.momentum)

    def after_step(self, state, batch, key):
        """Returns the variables of "codebook_state" after a step, of those before it and of the
        sum of what its calls left in "codebook_batch"; `key` draws the splitting's noise."""
        state = running_codebook.after_step(state, batch, self.momentum, self.split_threshold, key)
        if self.reseed_threshold > 0:
            state = running_codebook.reseed(state, batch, self.momentum, self.reseed_threshold)
        return state

    def _learn(self, z_ND: jax.Array, indices_N: jax.Array, examples: int) -> None:
        in_parts = self.is_mutable_collection(BATCH)
        if not (in_parts or self.is_mutable_collection(STATE)):
            return
        batch = {
            "counts": nearest.counts(indices_N, self.codebook_size),
            "sums": nearest.sums(z_ND, indices_N, self.codebook_size),
        }
        present_B, key = jnp.ones(examples, bool), None
        if in_parts and self.reseed_threshold > 0:
            if not self.has_variable(PART, "present"):
                raise UserError(
                    "EMAVectorQuantizer reseeds codewords and must know which part of a step's "
                    "batch a call has: the variables lack what quantizers.part_of_step gives."
                )
            present_B, key = (self.get_variable(PART, name) for name in ("present", "key"))
        elif not in_parts and (self.split_threshold > 0 or self.reseed_threshold > 0):
            if not self.has_rng("codebook"):
                raise UserError(
                    "EMAVectorQuantizer revives codewords in training and needs "
                    'rngs={"codebook": key}; split_threshold=0 and reseed_threshold=0 switch it '
                    "off."
                )
            key = self.make_rng("codebook")
        if self.reseed_threshold > 0:
            z_bTD = z_ND.reshape(examples, -1, self.width)
            batch |= running_codebook.seeds(z_bTD, present_B, self.codebook_size, key)
        if in_parts:
            for name, value in batch.items():
                self.put_variable(BATCH, name, value)
            return
        state = {"counts": self.counts.value, "dictionary": self.dictionary.value}
        state = self.after_step(state, batch, key)
        self.counts.value, self.dictionary.value = state["counts"], state["dictionary"]
