"""MaskGIT stage I: an autoencoder around a quantizer, trained against a discriminator.

Generator and discriminator are updated at once, from one forward pass: both losses are summed
into one, of which each network feels its own side alone.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from fsq_jax import quantizers
from fsq_jax.features.network import Network
from fsq_jax.metrics import losses
from fsq_jax.models.discriminator import Discriminator
from fsq_jax.models.maskgit_tokenizer import Tokenizer
from fsq_jax.runtime.user_error import UserError
from fsq_jax.stages import adversarial, optim
from fsq_jax.stages.stage import Stage, StageFacts, TrainState


def make_model(config) -> Tokenizer:
    """The autoencoder that `config.model` and `config.quantizer` describe."""
    return Tokenizer(quantizer=quantizers.of_config(config), **config.model)


def make_encode(config):
    """(variables, batch) -> tokens [B, h*w] int32 in raster order, of the batch's images."""
    model = make_model(config)

    def encode(variables, batch) -> jax.Array:
        quantized: Any = model.apply(variables, batch["image"], method="encode")
        return quantized.indices.reshape(len(batch["image"]), -1)

    return encode


def decode(model: Tokenizer, variables, tokens_BL: jax.Array) -> jax.Array:
    """Images [B, H, W, 3] in [0, 1], of tokens of a square grid in raster order."""
    side = round(tokens_BL.shape[1] ** 0.5)
    indices = tokens_BL.reshape(-1, side, side)
    images: Any = model.apply(variables, indices, method="decode_indices")
    return jnp.clip(images, 0, 1)


def facts_of(config, model: Tokenizer) -> StageFacts:
    """What is recorded of an autoencoder's codebook."""
    del config  # the model says it all
    return StageFacts(
        codebook_size=model.quantizer.codebook_size,
        levels=quantizers.levels(model.quantizer),
        downsampling=model.downsampling,
    )


def make_variables(config, key, batch) -> dict:
    """Initial variables of the autoencoder, {"params": tree, collection: tree}."""
    key_model, key_codebook = jax.random.split(key)
    rngs = {"params": key_model, "codebook": key_codebook}
    return dict(make_model(config).init(rngs, batch["image"][:1]))


def make(config, perceptual: Network | None = None) -> Stage:
    """The stage: `init`, `update`, and `predict` = {"reconstruct", "indices", "decode", "preview"}.

    Args:
      config: as of configs/maskgit_tokenizer.py.
      perceptual: the network of the perceptual loss, its weights or their shapes; None where
        `config.loss.perceptual` is 0.

    Raises:
      UserError: the loss asks for a network, and none is given.
    """
    model = make_model(config)
    discriminator = Discriminator(**config.discriminator) if config.loss.adversarial else None
    features, frozen = None, None
    if config.loss.perceptual:
        if perceptual is None:
            raise UserError(f"loss.perceptual={config.loss.perceptual} needs a perceptual network.")
        features, frozen = perceptual.apply, perceptual.variables
    optimizers = {"tokenizer": optim.make_optimizer(total_steps=config.steps, **config.optim)}
    if discriminator is not None:
        optimizers["discriminator"] = adversarial.make_optimizer(config)
    return Stage(
        init=_make_init(model, discriminator, optimizers),
        update=_make_update(
            config, model, optimizers, _make_loss(config.loss, model, discriminator, features)
        ),
        predict=_make_predict(model),
        frozen=frozen,
        facts=facts_of(config, model),
    )


def _make_init(model, discriminator, optimizers):
    def init(key, batch) -> TrainState:
        key_model, key_discriminator, key_codebook = jax.random.split(key, 3)
        images = batch["image"][:1]
        variables = dict(model.init({"params": key_model, "codebook": key_codebook}, images))
        params, train_only = {"tokenizer": variables.pop("params")}, {}
        if discriminator is not None:
            params["discriminator"] = discriminator.init(key_discriminator, images)["params"]
            train_only["lecam"] = losses.lecam_init()
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            opt_state={name: o.init(params[name]) for name, o in optimizers.items()},
            ema_params=params["tokenizer"],
            model_state=variables,
            train_only=train_only,
        )

    return init


def _make_update(config, model, optimizers, loss):
    def update(state: TrainState, batch, key):
        key, size = jax.random.fold_in(key, state.step), batch["image"].shape[0]

        def gradients(params, batch, microbatch_key):
            part = quantizers.part_of_step(batch["row"], size, key)
            grads, (sums, metrics) = jax.grad(loss, has_aux=True)(
                params, state, batch, part, microbatch_key
            )
            return grads, sums, metrics

        grads, sums, metrics = optim.accumulate(gradients, config.accumulate)(
            state.params, batch | {"row": jnp.arange(size)}, key
        )
        params, opt_state = {}, {}
        for name, optimizer in optimizers.items():
            updates, opt_state[name] = optimizer.update(
                grads[name], state.opt_state[name], state.params[name]
            )
            params[name] = optax.apply_updates(state.params[name], updates)
            metrics[f"{name}_gradient_norm"] = optax.tree.norm(grads[name])
        train_only = dict(state.train_only)
        if "lecam" in train_only:
            train_only["lecam"] = losses.lecam_after_step(
                train_only["lecam"],
                metrics["real_logit"],
                metrics["fake_logit"],
                config.loss.lecam_decay,
            )
        state = state.replace(
            step=state.step + 1,
            params=params,
            opt_state=opt_state,
            ema_params=optax.incremental_update(
                params["tokenizer"], state.ema_params, 1 - config.ema_decay
            ),
            train_only=train_only,
        )
        model_state = quantizers.after_step(
            model.quantizer, state.model_state, sums, key, rest=state
        )
        return state.replace(model_state=model_state), metrics

    return update


def _make_predict(model) -> dict:
    def reconstruct(state, batch, key):
        """{"reconstruction" [B,H,W,3] in [0, 1], "indices" [B,h,w]} by the averaged weights."""
        del key  # nothing is drawn
        variables = {"params": state.ema_params, **state.model_state}
        images, quantized = model.apply(variables, batch["image"])
        return {"reconstruction": jnp.clip(images, 0, 1), "indices": quantized.indices}

    def indices(state, batch, key):
        """{"indices" [B,h,w]} alone: no image is decoded."""
        del key
        variables = {"params": state.ema_params, **state.model_state}
        return {"indices": model.apply(variables, batch["image"], method="encode").indices}

    def decode_tokens(state, batch, key):
        """{"image"} of "tokens" [B, h*w]."""
        del key
        variables = {"params": state.ema_params, **state.model_state}
        return {"image": decode(model, variables, batch["tokens"])}

    def preview(state, batch, key):
        reconstruction = reconstruct(state, batch, key)["reconstruction"]
        pairs = jnp.stack([batch["image"], reconstruction], axis=1)  # original, reconstruction, …
        return {"reconstruction": pairs.reshape(-1, *reconstruction.shape[1:])}

    return {
        "reconstruct": reconstruct,
        "indices": indices,
        "decode": decode_tokens,
        "preview": preview,
    }


def _make_loss(weights, model, discriminator, features):
    """The sum of both networks' losses, each with respect to its own parameters alone."""

    def loss(params, state: TrainState, batch, part, key):
        images = batch["image"]
        (reconstruction, quantized), sums = model.apply(
            {"params": params["tokenizer"], **state.model_state, **part},
            images,
            train=True,
            rngs={"codebook": key},
            mutable=[quantizers.BATCH],
        )
        squared_error = losses.squared_error(images, reconstruction).mean()
        total = weights.reconstruction * squared_error + quantized.loss
        metrics = {"reconstruction": squared_error, "quantizer": quantized.loss}
        metrics |= {f"quantizer/{name}": value for name, value in quantized.metrics.items()}
        if features is not None:
            perceptual = losses.perceptual_distance(
                features(state.frozen, images), features(state.frozen, reconstruction)
            ).mean()
            total += weights.perceptual * perceptual
            metrics["perceptual"] = perceptual
        if discriminator is not None:
            both_sides, values = adversarial.contest(
                weights,
                discriminator,
                params["discriminator"],
                images,
                reconstruction,
                state.train_only["lecam"],
                state.step,
            )
            total += both_sides
            metrics |= values
        metrics["loss"] = total
        return total, (sums, metrics)

    return loss
