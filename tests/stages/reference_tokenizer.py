"""MaskGIT's tokenizer, its critic and their losses in float64 (Chang 2022, Esser 2021).

The autoencoder has two levels and one residual block in each, and the critic reads 8 pixels.
B batch, H W pixels, N tokens, D channels of a code, K words.
"""

import jax
import jax.numpy as jnp
import numpy as np

from tests.stages.reference_layers import (
    conv,
    dense,
    group_norm_swish,
    log_softmax,
    softplus,
)

GROUPS = 2


def block(x, p):
    """A residual block whose shortcut, where the width changes, reads the block's own output."""
    y = conv(group_norm_swish(x, p["GroupNorm_0"], GROUPS), p["Conv_0"])
    y = conv(group_norm_swish(y, p["GroupNorm_1"], GROUPS), p["Conv_1"])
    return (conv(y, p["Conv_2"]) if "Conv_2" in p else x) + y


def halved(x):
    batch, height, width, channels = x.shape
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels).mean((2, 4))


def doubled(x):
    return x.repeat(2, axis=1).repeat(2, axis=2)


def encoder(images, p):
    x = halved(block(conv(images, p["Conv_0"]), p["ResBlock_0"]))
    x = block(block(x, p["ResBlock_1"]), p["ResBlock_2"])
    return conv(group_norm_swish(x, p["GroupNorm_0"], GROUPS), p["Conv_1"])


def decoder(codes, p):
    x = block(block(conv(codes, p["Conv_0"]), p["ResBlock_0"]), p["ResBlock_1"])
    x = block(conv(doubled(x), p["Conv_1"]), p["ResBlock_2"])
    return conv(group_norm_swish(x, p["GroupNorm_0"], GROUPS), p["Conv_2"])


def vector_quantized(z, codebook, commitment, entropy_weight):
    """(words with a straight-through gradient, loss, its parts): MaskGIT's quantizer."""
    stop = jax.lax.stop_gradient
    z_ND = z.reshape(-1, z.shape[-1])
    distance_NK = ((z_ND[:, None] - codebook) ** 2).sum(-1)
    q_ND = codebook[distance_NK.argmin(1)]
    log_p_NK = log_softmax(-distance_NK / 0.01)
    p_NK = jnp.exp(log_p_NK)
    mean_K = p_NK.mean(0)
    parts = {
        "codebook_loss": ((q_ND - stop(z_ND)) ** 2).mean(),
        "commitment_loss": ((stop(q_ND) - z_ND) ** 2).mean(),
        "entropy_loss": -(p_NK * log_p_NK).sum(1).mean() + (mean_K * jnp.log(mean_K + 1e-5)).sum(),
    }
    loss = parts["codebook_loss"] + commitment * parts["commitment_loss"]
    loss += entropy_weight * parts["entropy_loss"]
    return (z_ND + stop(q_ND - z_ND)).reshape(z.shape), loss, parts


def blurred(x):
    """Every second pixel under [1,3,3,1] x [1,3,3,1] / 64, zeros around the image."""
    taps = np.array([1.0, 3.0, 3.0, 1.0]) / 8
    side = x.shape[1] // 2
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return sum(
        taps[i] * taps[j] * padded[:, i : i + 2 * side : 2, j : j + 2 * side : 2]
        for i in range(4)
        for j in range(4)
    )


def leaky(x):
    return jnp.where(x > 0, x, 0.2 * x)


def critic(images, p):
    """Logits [B]."""
    x, own = leaky(conv(images, p["Conv_0"])), p["ResBlock_0"]
    main = leaky(conv(blurred(leaky(conv(x, own["Conv_0"]))), own["Conv_1"]))
    x = (main + conv(blurred(x), own["Conv_2"])) / np.sqrt(2)
    x = leaky(conv(x, p["Conv_1"])).reshape(len(images), -1)
    return dense(leaky(dense(x, p["Dense_0"])), p["Dense_1"])[:, 0]


def make_losses(weights, features):
    """(params, images, LeCam's means, 1 where R1 is on) -> gradients and all values.

    Args:
      weights: of "reconstruction", "perceptual", "adversarial", "commitment", "entropy", "r1",
        "lecam".
      features: images -> features, of the perceptual loss.
    """

    def generator(p, critic_p, images):
        z = encoder(images, p["encoder"])
        codes, quantizer, parts = vector_quantized(
            z, p["quantizer"]["codebook"], weights["commitment"], weights["entropy"]
        )
        fake = decoder(codes, p["decoder"])
        values = {
            "reconstruction": ((images - fake) ** 2).mean(),
            "quantizer": quantizer,
            "perceptual": ((features(images) - features(fake)) ** 2).mean(),
            "adversarial": softplus(-critic(fake, critic_p)).mean(),
        }
        total = quantizer + sum(
            weights[name] * values[name] for name in ("reconstruction", "perceptual", "adversarial")
        )
        values |= {f"quantizer/{name}": value for name, value in parts.items()}
        return total, (fake, values | {"generator": total})

    def discriminator(p, images, fake, mean_real, mean_fake, r1_on):
        real_logit, fake_logit = critic(images, p), critic(fake, p)
        slope = jax.grad(lambda x: critic(x, p).sum())(images)
        values = {
            "discriminator": (softplus(-real_logit) + softplus(fake_logit)).mean(),
            # Of the squared norm of an image's slope the mean over images, and no half of it.
            "r1": r1_on * weights["r1"] * (slope**2).sum((1, 2, 3)).mean(),
            "lecam": (jnp.maximum(real_logit - mean_fake, 0) ** 2).mean()
            + (jnp.maximum(mean_real - fake_logit, 0) ** 2).mean(),
            "real_logit": real_logit.mean(),
            "fake_logit": fake_logit.mean(),
        }
        total = values["discriminator"] + values["r1"] + weights["lecam"] * values["lecam"]
        return total, values | {"critic": total}

    def gradients(params, images, mean_real, mean_fake, r1_on):
        grads, (fake, values) = jax.grad(generator, has_aux=True)(
            params["tokenizer"], params["discriminator"], images
        )
        critic_grads, critic_values = jax.grad(discriminator, has_aux=True)(
            params["discriminator"], images, fake, mean_real, mean_fake, r1_on
        )
        return {"tokenizer": grads, "discriminator": critic_grads}, values | critic_values

    return gradients
