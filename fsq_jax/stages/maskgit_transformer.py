"""MaskGIT stage II: a transformer that fills in masked tokens, given a class.

B batch, L tokens of an image (raster order), S = L + 1 positions with the class token first,
V codebook size.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from fsq_jax.metrics import compression, losses
from fsq_jax.models.maskgit_tokenizer import Tokenizer
from fsq_jax.models.maskgit_transformer import MaskedTransformer, rounded
from fsq_jax.sampling import masked
from fsq_jax.stages import maskgit_tokenizer, optim
from fsq_jax.stages import stage_1 as stage_1_of
from fsq_jax.stages.stage import Stage, TrainState, first_state, next_state
from fsq_jax.stages.stage_1 import Stage1


@dataclasses.dataclass(frozen=True)
class MaskGIT:
    """The two networks of stage II, and the numbers that tie them together."""

    transformer: MaskedTransformer
    tokenizer: Tokenizer
    encode: Callable  # (the tokenizer's variables, batch) -> tokens [B, L]
    num_classes: int
    side: int  # of the grid of tokens

    @property
    def codebook_size(self) -> int:
        return self.tokenizer.quantizer.codebook_size

    @property
    def mask_id(self) -> int:
        return self.codebook_size + self.num_classes

    def tokens(self, state: TrainState, batch) -> jax.Array:
        """Tokens [B, L] of a batch: read from it, or its images encoded by the frozen tokenizer."""
        if "tokens" in batch:
            return batch["tokens"]
        return self.encode(state.frozen, batch)

    def logits_fn(self, params) -> masked.LogitsFn:
        """tokens_BS -> logits_BSV over indices."""
        params = rounded(params, self.transformer.dtype)

        def logits(tokens_BS) -> Any:
            return self.transformer.apply({"params": params}, tokens_BS)

        return logits


def make(config, stage_1: Stage1) -> Stage:
    """The stage: `init`, `update`, and what `_make_predict` lists.

    Args:
      config: as of configs/maskgit_transformer.py, its number of classes resolved.
      stage_1: the tokenizer whose tokens are modelled, its weights or their shapes.

    Raises:
      UserError: the tokenizer doesn't fit the config.
    """
    stage_1_of.verify(stage_1, config)
    side = config.data.size // stage_1.facts.downsampling
    codebook_size = stage_1.facts.codebook_size
    transformer = MaskedTransformer(
        vocab_size=codebook_size + config.num_classes + 1,
        num_positions=side**2 + 1,
        num_logits=codebook_size,
        **config.model,
    )
    sampling = config.sampling.copy_and_resolve_references()
    sampling.guidance = guidance_for(sampling.guidance, stage_1, config.data.size)
    models = MaskGIT(transformer, stage_1.model, stage_1.encode, config.num_classes, side)
    optimizer = optim.make_optimizer(total_steps=config.steps, **config.optim)
    return Stage(
        init=_make_init(models, optimizer),
        update=_make_update(models, optimizer, config),
        predict=_make_predict(models, sampling, config.masking),
        facts=dataclasses.replace(
            stage_1.facts,
            num_classes=config.num_classes,
            grid=side,
            stage_1=stage_1.fingerprint,
            sampling=sampling.to_dict(),
        ),
        frozen=stage_1.variables,
        recorded={
            "stage_1.fingerprint": stage_1.fingerprint,
            "sampling.guidance": sampling.guidance,
        },
    )


def guidance_for(guidance: float, stage_1: Stage1, size: int) -> float:
    """The strength of guidance that a config asks for; -1: the paper's for that tokenizer.

    Figure 4 found 0.2 best for FSQ and 0.1 for VQ, at 256 pixels; section 4.2, at 128 pixels,
    states none, and none is taken for any other size or quantizer.
    """
    if guidance != -1:
        return guidance
    if size != 256:
        return 0.0
    return {"fsq": 0.2, "vq": 0.1, "vq_ema": 0.1}.get(stage_1.config.quantizer.name, 0.0)


def _make_init(models: MaskGIT, optimizer):
    def init(key, batch) -> TrainState:
        del batch  # the shapes are the model's own
        tokens = jnp.zeros((1, models.side**2 + 1), jnp.int32)
        params = models.transformer.init(key, tokens)["params"]
        return first_state(params, optimizer, {})

    return init


def _make_update(models: MaskGIT, optimizer, config):
    def gradients(params, batch, key):
        def mean_loss(params):
            values_B = masked_loss(
                models,
                params,
                batch["tokens"],
                batch["class"],
                batch["mask"],
                key,
                config.masking.label_smoothing,
                train=True,
            )
            means = {name: value.mean() for name, value in values_B.items()}
            return means["loss"], means

        grads, metrics = jax.grad(mean_loss, has_aux=True)(params)
        return grads, {}, metrics

    def update(state: TrainState, batch, key):
        key_label, key_loss = jax.random.split(jax.random.fold_in(key, state.step))
        key_mask, key_dropout = jax.random.split(key_loss)
        # Drawn for the whole batch, so that only dropout depends on how it is cut.
        tokens_BL, label_B = models.tokens(state, batch), batch["label"]
        dropped_B = jax.random.bernoulli(key_label, config.label_dropping, label_B.shape)
        inputs = {
            "tokens": tokens_BL,
            "class": jnp.where(dropped_B, models.mask_id, label_B + models.codebook_size),
            "mask": _draw_mask(key_mask, tokens_BL, config.masking),
        }
        grads, _, metrics = optim.accumulate(gradients, config.accumulate)(
            state.params, inputs, key_dropout
        )
        state = next_state(state, grads, optimizer, config.ema_decay)
        return state, metrics | {"gradient_norm": optax.tree.norm(grads)}

    return update


def _draw_mask(key, tokens_BL, masking) -> jax.Array:
    return masked.random_mask(
        key, *tokens_BL.shape, min_ratio=masking.min_ratio, schedule=masking.schedule
    )


def masked_loss(
    models: MaskGIT,
    params: Any,
    tokens_BL,
    class_B,
    mask_BL,
    key,
    label_smoothing: float,
    train: bool,
) -> dict[str, jax.Array]:
    """{"loss" in nats, "accuracy"} of masked tokens, each a value per example [B].

    Args:
      models, params: the transformer and its weights.
      tokens_BL, class_B: what is to be found, and the class token that goes before it.
      mask_BL: True where a token is masked.
      key: draws dropout, in training.
      label_smoothing: of the cross-entropy.
      train: whether there is dropout.
    """
    inputs_BL = jnp.where(mask_BL, models.mask_id, tokens_BL)
    logits_BSV: Any = models.transformer.apply(
        {"params": params},
        jnp.concatenate([class_B[:, None], inputs_BL], axis=1),
        train=train,
        rngs={"dropout": key},
    )
    logits_BLV = logits_BSV[:, 1:]
    hits_BL = (logits_BLV.argmax(-1) == tokens_BL) & mask_BL
    return {
        "loss": losses.masked_cross_entropy(logits_BLV, tokens_BL, mask_BL, label_smoothing),
        "accuracy": hits_BL.sum(1) / mask_BL.sum(1),
    }


def _make_samplers(models: MaskGIT, sampling) -> dict:
    def draw(state, batch, key, **options) -> Any:
        """What `masked.decode` gives for the batch's labels, or for completions where it brings
        "tokens" and "known"; "guidance" and "choice_temperature" [B] go over the config's."""
        tokens_BS = masked.initial_tokens(
            batch["label"], models.side**2, models.codebook_size, models.num_classes
        )
        if "known" in batch:
            tokens_BS = masked.with_known(tokens_BS, batch["tokens"], batch["known"])
        guidance = batch.get("guidance", sampling.guidance)
        return masked.decode(
            masked.guided(models.logits_fn(state.ema_params), guidance, models.mask_id),
            tokens_BS,
            key,
            mask_id=models.mask_id,
            num_steps=sampling.num_steps,
            schedule=sampling.schedule,
            choice_temperature=batch.get("choice_temperature", sampling.choice_temperature),
            **options,
        )

    def decode(state, batch, key):
        """{"image"} of "tokens" [B, L]."""
        del key  # nothing is drawn
        return {"image": maskgit_tokenizer.decode(models.tokenizer, state.frozen, batch["tokens"])}

    def sample(state, batch, key):
        """Images, and their tokens [B, L]."""
        tokens_BL = draw(state, batch, key)[:, 1:]
        return decode(state, {"tokens": tokens_BL}, None) | {"tokens": tokens_BL}

    def steps(state, batch, key):
        """{"tokens", "again" [B, T, L]}: what each step drew, and what of it the next one draws
        again; the last step's tokens are `sample`'s."""
        _, sampled_TBS, again_TBS = draw(state, batch, key, return_steps=True)
        again_TBS = again_TBS.at[-1].set(False)
        return {
            "tokens": sampled_TBS.swapaxes(0, 1)[..., 1:],
            "again": again_TBS.swapaxes(0, 1)[..., 1:],
        }

    return {
        "sample": sample,
        "steps": steps,
        "decode": decode,
        "preview": lambda state, batch, key: {"sample": sample(state, batch, key)["image"]},
    }


def _make_predict(models: MaskGIT, sampling, masking) -> dict:
    side, mask_id = models.side, models.mask_id

    def bits(state, batch, key):
        """Bits [B] that an image's tokens take under M2T's deterministic schedule."""
        del key  # nothing is drawn
        class_B1 = batch["label"][:, None] + models.codebook_size
        tokens_BS = jnp.concatenate([class_B1, models.tokens(state, batch)], axis=1)
        bits_B = compression.bits(
            models.logits_fn(state.ema_params),
            tokens_BS,
            compression.groups(side, side, num_steps=min(12, side**2)),
            codebook_size=models.codebook_size,
            mask_id=mask_id,
        )
        return {"bits": bits_B, "num_tokens": jnp.full(bits_B.shape, side**2)}

    def loss(state, batch, key):
        """The training loss without dropout and label dropping."""
        class_B = batch["label"] + models.codebook_size
        tokens_BL = models.tokens(state, batch)
        mask_BL = _draw_mask(jax.random.split(key)[0], tokens_BL, masking)
        return masked_loss(
            models,
            state.ema_params,
            tokens_BL,
            class_B,
            mask_BL,
            key,
            masking.label_smoothing,
            train=False,
        )

    return _make_samplers(models, sampling) | {
        "bits": bits,
        "loss": loss,
        "tokens": lambda state, batch, key: {"tokens": models.tokens(state, batch)},
    }
