"""SimVQ: a frozen random codebook, seen through a linear layer that is trained.

Zhu et al., "Addressing Representation Collapse in Vector Quantized Models with One Linear Layer"
(arXiv 2411.02038). All codewords move when the layer does, so that none is left behind.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from fsq_jax.quantizers import nearest
from fsq_jax.quantizers.codebook import STATE, Codebook, perplexity
from fsq_jax.quantizers.fsq import Quantized


class SimVQ(Codebook):
    """Nearest of the codewords W c + b, c frozen and W, b trained by codebook and commitment loss.

    codebook_weight, commitment_weight: of mean (codeword - sg(z))^2 and mean (sg(codeword) - z)^2;
      1 and 0.25 are the authors' (`legacy=False`) and those of vector-quantize-pytorch 1.32.
    bias: whether there is a b: the authors' code has it, their equations and
      vector-quantize-pytorch have not.
    Where the authors hand the decoder's gradient straight through, vector-quantize-pytorch takes
    `gradient="rotation"`; it also lets c be of another width than W c.

    The collection "codebook_state" has `frozen` [K, D], N(0, 1 / D), which nothing changes. W and b
    start like a linear layer of PyTorch, U(-D**-0.5, D**-0.5).
    """

    codebook_weight: float = 1.0
    commitment_weight: float = 0.25
    bias: bool = True

    def setup(self):
        super().setup()
        init = nn.initializers.normal(self.width**-0.5)
        shape = (self.codebook_size, self.width)
        self.frozen = self.variable(STATE, "frozen", lambda: init(self.make_rng("params"), shape))
        self.linear = nn.Dense(
            self.width,
            use_bias=self.bias,
            kernel_init=_uniform,
            bias_init=_uniform,
            precision=jax.lax.Precision.HIGHEST,
        )

    def __call__(self, z: jax.Array, train: bool = False) -> Quantized:
        """Quantizes z, [..., C]; training and evaluation do the same.

        metrics: the losses before their weights, and the batch's `perplexity`, 1 to K.
        """
        del train
        z_ND, codebook_KD = self.tokens(z), self.codewords()
        indices_N = nearest.nearest(z_ND, codebook_KD)
        q_ND = nearest.look_up(codebook_KD, indices_N)
        metrics = {
            "codebook_loss": jnp.mean((q_ND - jax.lax.stop_gradient(z_ND)) ** 2),
            "commitment_loss": jnp.mean((jax.lax.stop_gradient(q_ND) - z_ND) ** 2),
            "perplexity": perplexity(self.share(indices_N)),
        }
        loss = self.codebook_weight * metrics["codebook_loss"]
        loss += self.commitment_weight * metrics["commitment_loss"]
        return self.quantized(z, z_ND, q_ND, indices_N, loss, metrics)

    def codewords(self) -> jax.Array:
        return self.linear(self.frozen.value)


def _uniform(key, shape, dtype=jnp.float32):
    """Of a square kernel and of its bias alike."""
    bound = shape[0] ** -0.5
    return jax.random.uniform(key, shape, dtype, -bound, bound)
