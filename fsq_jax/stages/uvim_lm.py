"""UViM stage II: a language model that writes the tokens of a label, given the image
(section 4.4).

B batch, H W pixels, N tokens of a label, V = codebook size + 1: token 0 begins, and index i of
stage I is token i + 1.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from fsq_jax.metrics import losses
from fsq_jax.models.uvim_decode import decoding
from fsq_jax.models.uvim_lm import CodeLanguageModel
from fsq_jax.runtime.user_error import UserError
from fsq_jax.sampling import autoregressive
from fsq_jax.stages import optim, uvim_base
from fsq_jax.stages import stage_1 as stage_1_of
from fsq_jax.stages.stage import Stage, TrainState, first_state, next_state
from fsq_jax.stages.stage_1 import Stage1
from fsq_jax.tasks.unlabelled import context

# What decides which image a record becomes: a token cache is made of these very images.
_VIEWS = ("source", "train_split", "size", "transform", "min_area", "aspect", "flip", "eval_crop")


@dataclasses.dataclass(frozen=True)
class UViM:
    """The language model, the frozen oracle, and how tokens are drawn (0: the likeliest)."""

    lm: CodeLanguageModel
    coder: uvim_base.LabelCoder
    temperature: float

    def indices(self, state: TrainState, batch) -> jax.Array:
        """Indices [B, N] of a batch: read from it, or its labels encoded by the frozen oracle."""
        if "tokens" in batch:
            return batch["tokens"]
        return self.coder.encode(state.frozen, batch)

    def context(self, batch) -> jax.Array:
        """What both models see of a batch, [B,H,W,3] in [-1, 1]."""
        return context(self.coder.task, batch)

    def loss(self, params, context_BHWC, indices_BN) -> dict[str, jax.Array]:
        """{"loss" in nats, "accuracy"} of the indices, each given those before it; [B]."""
        logits_BNV: Any = self.lm.apply({"params": params}, context_BHWC, indices_BN)
        hits_BN = logits_BNV.argmax(-1) == indices_BN + 1
        return {
            "loss": losses.cross_entropy(logits_BNV, indices_BN + 1).mean(axis=1),
            "accuracy": hits_BN.mean(axis=1),
        }

    def sample(self, params, context_BHWC, key) -> jax.Array:
        """Indices [B, N] that the model writes, one after the other."""
        return autoregressive.sample_indices(
            *decoding(self.lm, params, context_BHWC),
            key,
            num_tokens=self.lm.num_tokens,
            batch=context_BHWC.shape[0],
            temperature=self.temperature,
        )


def make(config, stage_1: Stage1) -> Stage:
    """The stage: `init`, `update`, and what `_make_predict` lists.

    Args:
      config: as of configs/uvim_lm.py.
      stage_1: the label autoencoder whose indices are modelled, its weights or their shapes.

    Raises:
      UserError: the autoencoder is of another task or of other images.
    """
    stage_1_of.verify(stage_1, config)
    _verify_task(stage_1, config)
    coder = uvim_base.make_coder(stage_1.config)
    uvim_base.check_size(config.data.size, config.model.patch)
    lm = CodeLanguageModel(
        vocab_size=stage_1.facts.codebook_size + 1,
        num_tokens=coder.model.num_tokens,
        **config.model,
    )
    models = UViM(lm, coder, config.sampling.temperature)
    optimizer = optim.make_optimizer(total_steps=config.steps, **config.optim)
    return Stage(
        init=_make_init(models, optimizer),
        update=_make_update(models, optimizer, config),
        predict=_make_predict(models),
        facts=dataclasses.replace(
            stage_1.facts, stage_1=stage_1.fingerprint, sampling=config.sampling.to_dict()
        ),
        frozen=stage_1.variables,
        recorded={"stage_1.fingerprint": stage_1.fingerprint},
    )


def _verify_task(stage_1: Stage1, config) -> None:
    """Raises a UserError where stage I encodes other labels, or saw other images."""
    theirs = stage_1.config
    differing = {
        f"task.{name}": (value, config.task.get(name))
        for name, value in theirs.task.items()
        if value != config.task.get(name)
    }
    names = _VIEWS if config.token_cache else ("size",)
    differing |= {
        f"data.{name}": (theirs.data[name], config.data[name])
        for name in names
        if theirs.data[name] != config.data[name]
    }
    if differing:
        listed = [f"{k}: {there} there, {ours} here" for k, (there, ours) in differing.items()]
        raise UserError(
            f"The stage I in {stage_1.path!r} is of another task or of other images "
            f"({'; '.join(listed)})."
        )


def _make_init(models: UViM, optimizer):
    def init(key, batch) -> TrainState:
        context = models.context({"image": batch["image"][:1]})
        indices = jnp.zeros((1, models.lm.num_tokens), jnp.int32)
        params = models.lm.init(key, context, indices)["params"]
        return first_state(params, optimizer, {})

    return init


def _make_update(models: UViM, optimizer, config):
    def gradients(params, batch, key):
        del key  # nothing is drawn: neither model drops anything here

        def mean_loss(params):
            values_B = models.loss(params, batch["context"], batch["indices"])
            means = {name: value.mean() for name, value in values_B.items()}
            return means["loss"], means

        grads, metrics = jax.grad(mean_loss, has_aux=True)(params)
        return grads, {}, metrics

    def update(state: TrainState, batch, key):
        inputs = {"context": models.context(batch), "indices": models.indices(state, batch)}
        grads, _, metrics = optim.accumulate(gradients, config.accumulate)(
            state.params, inputs, key
        )
        state = next_state(state, grads, optimizer, config.ema_decay)
        return state, metrics | {"gradient_norm": optax.tree.norm(grads)}

    return update


def _make_predict(models: UViM) -> dict:
    def sample(state, batch, key):
        """{"indices" [B, N]}, which the model writes."""
        return {"indices": models.sample(state.ema_params, models.context(batch), key)}

    def prediction(state, batch, key):
        """The task's prediction from the image alone."""
        indices = sample(state, batch, key)["indices"]
        return models.coder.predict(state.frozen, models.context(batch), indices)

    def loss(state, batch, key):
        """The training loss of the true labels' indices, "loss" and "accuracy" [B]."""
        del key  # nothing is drawn
        indices = models.indices(state, batch)
        return models.loss(state.ema_params, models.context(batch), indices)

    def preview(state, batch, key):
        return {"prediction": models.coder.preview(batch, prediction(state, batch, key))}

    return {
        "sample": sample,
        "prediction": prediction,
        "loss": loss,
        "indices": lambda state, batch, key: {"indices": models.indices(state, batch)},
        "preview": preview,
    }
