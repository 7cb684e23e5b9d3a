"""MaskGIT stage I: an autoencoder around a quantizer, trained against a discriminator.

Generator and discriminator are updated at once, from one forward pass: both losses are summed
into one, with gradients stopped where one network must not feel the other's loss, and XLA merges
the forward passes that the two halves share.
"""

import jax
import jax.numpy as jnp
import optax

from fsq_jax import quantizers
from fsq_jax.features.networks import abstract_perceptual, load_perceptual
from fsq_jax.metrics import losses
from fsq_jax.models.discriminator import Discriminator
from fsq_jax.models.maskgit_tokenizer import Tokenizer
from fsq_jax.stages import optim
from fsq_jax.stages.stage import Stage, TrainState


def make_model(config) -> Tokenizer:
    """The autoencoder that `config.model` and `config.quantizer` describe."""
    return Tokenizer(quantizer=quantizers.of_config(config), **config.model)


def make_encode(config):
    """(variables, batch) -> tokens [B, h*w] int32 in raster order, of the batch's images."""
    model = make_model(config)

    def encode(variables, batch) -> jax.Array:
        indices = model.apply(variables, batch["image"], method="encode").indices
        return indices.reshape(indices.shape[0], -1)

    return encode


def decode(model: Tokenizer, variables, tokens_BL: jax.Array) -> jax.Array:
    """Images [B, H, W, 3] in [0, 1], of tokens of a square grid in raster order."""
    side = round(tokens_BL.shape[1] ** 0.5)
    indices = tokens_BL.reshape(-1, side, side)
    return jnp.clip(model.apply(variables, indices, method="decode_indices"), 0, 1)


def describe_codes(config, model: Tokenizer) -> dict:
    """{"codebook_size", "levels" (FSQ's; () for a VQ), "downsampling"} of an autoencoder."""
    del config  # the model says it all
    return {
        "codebook_size": model.quantizer.codebook_size,
        "levels": tuple(getattr(model.quantizer, "levels", ())),
        "downsampling": model.downsampling,
    }


def make(config, abstract: bool = False) -> Stage:
    """The stage: `init`, `update`, and `predict` = {"reconstruct", "indices", "preview"}.

    Args:
      config: as of configs/maskgit_tokenizer.py.
      abstract: takes the perceptual network's weights as shapes, rather than load them.
    """
    model = make_model(config)
    discriminator = Discriminator(**config.discriminator) if config.loss.adversarial else None
    features, frozen = None, None
    if config.loss.perceptual:
        load = abstract_perceptual if abstract else load_perceptual
        features, frozen, _ = load(**config.perceptual)
    optimizers = {"tokenizer": optim.make_optimizer(total_steps=config.steps, **config.optim)}
    if discriminator is not None:
        start = config.loss.discriminator_start
        critic = optim.make_optimizer(
            total_steps=config.steps, **{**config.optim, **config.discriminator_optim}
        )
        # Asleep until its start, and not fed zeros: Adam would count those steps, and take a
        # first real one that is ten times too long.
        asleep = optax.conditionally_mask(critic, lambda step: step >= start)
        optimizers["discriminator"] = asleep if start else critic
    return Stage(
        init=_make_init(model, discriminator, optimizers),
        update=_make_update(config, optimizers, _make_loss(config.loss, model, discriminator,
                                                           features)),
        predict=_make_predict(model),
        frozen=frozen,
        info=describe_codes(config, model),
    )


def _make_init(model, discriminator, optimizers):
    def init(key, batch) -> TrainState:
        key_model, key_discriminator, key_codebook = jax.random.split(key, 3)
        images = batch["image"][:1]
        variables = dict(model.init({"params": key_model, "codebook": key_codebook}, images))
        params = {"tokenizer": variables.pop("params")}
        if discriminator is not None:
            params["discriminator"] = discriminator.init(key_discriminator, images)["params"]
            variables["lecam"] = losses.lecam_init()
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            opt_state={name: o.init(params[name]) for name, o in optimizers.items()},
            ema_params=params["tokenizer"],
            model_state=variables,
        )

    return init


def _make_update(config, optimizers, loss):
    def update(state: TrainState, batch, key):
        def gradients(params, model_state, batch, key):
            grads, (model_state, metrics) = jax.grad(loss, has_aux=True)(
                params, model_state, state.frozen, batch, key, state.step
            )
            return grads, model_state, metrics

        grads, model_state, metrics = optim.accumulate(gradients, config.accumulate)(
            state.params, state.model_state, batch, jax.random.fold_in(key, state.step)
        )
        params, opt_state = {}, {}
        for name, optimizer in optimizers.items():
            updates, opt_state[name] = optimizer.update(
                grads[name], state.opt_state[name], state.params[name]
            )
            params[name] = optax.apply_updates(state.params[name], updates)
            metrics[f"{name}_gradient_norm"] = optax.tree.norm(grads[name])
        return state.replace(
            step=state.step + 1,
            params=params,
            opt_state=opt_state,
            ema_params=optim.moving_average(
                state.ema_params, params["tokenizer"], config.ema_decay
            ),
            model_state=model_state,
        ), metrics

    return update


def _make_predict(model) -> dict:
    def reconstruct(state, batch, key):
        """{"reconstruction" [B,H,W,3] in [0, 1], "indices" [B,h,w]} by the averaged weights."""
        del key  # nothing is drawn
        variables = {"params": state.ema_params, **_collections(state.model_state)}
        images, quantized = model.apply(variables, batch["image"])
        return {"reconstruction": jnp.clip(images, 0, 1), "indices": quantized.indices}

    def indices(state, batch, key):
        """{"indices" [B,h,w]} alone: no image is decoded."""
        del key
        variables = {"params": state.ema_params, **_collections(state.model_state)}
        return {"indices": model.apply(variables, batch["image"], method="encode").indices}

    def preview(state, batch, key):
        reconstruction = reconstruct(state, batch, key)["reconstruction"]
        pairs = jnp.stack([batch["image"], reconstruction], axis=1)  # original, reconstruction, …
        return {"reconstruction": pairs.reshape(-1, *reconstruction.shape[1:])}

    return {"reconstruct": reconstruct, "indices": indices, "preview": preview}


def _collections(model_state) -> dict:
    """What of the model state belongs to the autoencoder."""
    return {name: value for name, value in model_state.items() if name != "lecam"}


def _make_loss(weights, model, discriminator, features):
    """The sum of both networks' losses, each with respect to its own parameters alone."""

    def loss(params, model_state, frozen, batch, key, step):
        images = batch["image"]
        collections = _collections(model_state)
        (reconstruction, quantized), new_collections = model.apply(
            {"params": params["tokenizer"], **collections},
            images,
            train=True,
            rngs={"codebook": key},
            mutable=list(collections),
        )
        squared_error = losses.squared_error(images, reconstruction).mean()
        total = weights.reconstruction * squared_error + quantized.loss
        metrics = {"reconstruction": squared_error, "quantizer": quantized.loss}
        metrics |= {f"quantizer/{name}": value for name, value in quantized.metrics.items()}
        model_state = model_state | new_collections
        if features is not None:
            perceptual = losses.perceptual_distance(
                features(frozen, images), features(frozen, reconstruction)
            ).mean()
            total += weights.perceptual * perceptual
            metrics["perceptual"] = perceptual
        if discriminator is not None:
            adversarial, lecam, values = _adversarial(
                weights, discriminator, params["discriminator"], images, reconstruction,
                model_state["lecam"], step,
            )
            total += adversarial
            metrics |= values
            model_state = model_state | {"lecam": lecam}
        metrics["loss"] = total
        return total, (model_state, metrics)

    return loss


def _adversarial(weights, discriminator, params, images, reconstruction, lecam, step):
    """(loss of both sides, new LeCam averages, metrics) of the two networks' contest."""
    stop = jax.lax.stop_gradient
    real = discriminator.apply({"params": params}, images)
    fake = discriminator.apply({"params": params}, stop(reconstruction))
    fooled = discriminator.apply({"params": stop(params)}, reconstruction)

    generator = losses.generator_loss(fooled).mean()
    critic = losses.discriminator_loss(real, fake).mean()
    r1 = _lazy_r1(weights, discriminator, params, images, step)
    lecam_B, lecam = losses.lecam(real, fake, lecam, decay=weights.lecam_decay)

    # Before its start step a network's share is nothing.
    generator_on = jnp.float32(step >= weights.adversarial_start)
    critic_on = jnp.float32(step >= weights.discriminator_start)
    total = weights.adversarial * generator_on * generator + critic_on * (
        critic + r1 + weights.lecam * lecam_B.mean()
    )
    metrics = {
        "adversarial": generator, "discriminator": critic, "r1": r1, "lecam": lecam_B.mean(),
        "real_logit": real.mean(), "fake_logit": fake.mean(),
    }
    return total, lecam, metrics


def _lazy_r1(weights, discriminator, params, images, step):
    """R1 at every `r1_every`-th step, that much stronger (StyleGAN2's lazy regularisation)."""

    def penalty():
        logits = lambda x: discriminator.apply({"params": params}, x)  # noqa: E731
        return weights.r1 * weights.r1_every * losses.r1_penalty(logits, images).mean()

    if weights.r1 == 0:
        return jnp.zeros(())
    if weights.r1_every == 1:
        return penalty()
    return jax.lax.cond(step % weights.r1_every == 0, penalty, lambda: jnp.zeros(()))
