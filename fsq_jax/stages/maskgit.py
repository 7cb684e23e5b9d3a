"""MaskGIT stage II: a transformer that fills in masked tokens, given a class.

B batch, L tokens of an image (raster order), S = L + 1 positions with the class token first,
V codebook size.
"""

import jax
import jax.numpy as jnp
import optax

from fsq_jax import losses, optim
from fsq_jax.data.sources import make_source
from fsq_jax.metrics import compression
from fsq_jax.models.maskgit_transformer import MaskedTransformer
from fsq_jax.sampling import masked
from fsq_jax.stages import frozen_tokenizer, tokenizer
from fsq_jax.stages.stage import Stage, TrainState


def make(config, abstract: bool = False) -> Stage:
    """The stage: `init`, `update`, `predict` = {"sample", "bits", "tokens", "loss", "preview"}.

    Args:
      config: as of configs/maskgit_transformer.py.
      abstract: takes the tokenizer that the config describes, as shapes, rather than load one.
    """
    if abstract:
        model_1 = tokenizer.make_model(config.tokenizer)
        image = jax.ShapeDtypeStruct((1, config.data.size, config.data.size, 3), jnp.float32)
        frozen = jax.eval_shape(model_1.init, jax.random.key(0), image)
        fingerprint = ""
    else:
        trained = _load_tokenizer(config)
        model_1, frozen, fingerprint = trained.model, trained.variables, trained.fingerprint
    codebook_size, num_classes = model_1.quantizer.codebook_size, config.num_classes
    side = config.data.size // model_1.downsampling
    mask_id = codebook_size + num_classes
    model = MaskedTransformer(
        vocab_size=mask_id + 1, num_positions=side**2 + 1, num_logits=codebook_size, **config.model
    )
    optimizer = optim.make_optimizer(total_steps=config.steps, **config.optim)

    def tokens_of(state, batch):
        if "tokens" in batch:
            return batch["tokens"]
        return frozen_tokenizer.encode(model_1, state.frozen, batch["image"])

    def logits_fn(params):
        return lambda tokens_BS: model.apply({"params": params}, tokens_BS)

    def init(key, batch) -> TrainState:
        del batch  # the shapes are the model's own
        params = model.init(key, jnp.zeros((1, side**2 + 1), jnp.int32))["params"]
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            opt_state=optimizer.init(params),
            ema_params=params,
            model_state={},
        )

    def loss(params, tokens_BL, label_B, key, train: bool):
        """Mean cross-entropy on masked tokens; (loss, metrics), each a value an example."""
        key_mask, key_drop, key_dropout = jax.random.split(key, 3)
        mask_BL = masked.random_mask(
            key_mask, *tokens_BL.shape, min_ratio=config.masking.min_ratio,
            schedule=config.masking.schedule,
        )
        class_B = label_B + codebook_size
        if train:
            dropped_B = jax.random.bernoulli(key_drop, config.label_dropping, label_B.shape)
            class_B = jnp.where(dropped_B, mask_id, class_B)
        inputs_BL = jnp.where(mask_BL, mask_id, tokens_BL)
        logits_BSV = model.apply(
            {"params": params},
            jnp.concatenate([class_B[:, None], inputs_BL], axis=1),
            train=train,
            rngs={"dropout": key_dropout},
        )
        logits_BLV = logits_BSV[:, 1:]
        loss_B = losses.masked_cross_entropy(
            logits_BLV, tokens_BL, mask_BL, config.masking.label_smoothing
        )
        hits_BL = (logits_BLV.argmax(-1) == tokens_BL) & mask_BL
        return {"loss": loss_B, "accuracy": hits_BL.sum(1) / mask_BL.sum(1)}

    def update(state: TrainState, batch, key):
        key = jax.random.fold_in(key, state.step)
        batch = {"tokens": tokens_of(state, batch), "label": batch["label"]}

        def gradients(params, carry, batch, key):
            def mean_loss(params):
                values_B = loss(params, batch["tokens"], batch["label"], key, train=True)
                means = {name: value.mean() for name, value in values_B.items()}
                return means["loss"], means

            grads, metrics = jax.grad(mean_loss, has_aux=True)(params)
            return grads, carry, metrics

        grads, _, metrics = optim.accumulate(gradients, config.accumulate)(
            state.params, (), batch, key
        )
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return state.replace(
            step=state.step + 1,
            params=params,
            opt_state=opt_state,
            ema_params=optim.moving_average(state.ema_params, params, config.ema_decay),
        ), metrics | {"gradient_norm": optax.global_norm(grads)}

    def sample(state, batch, key):
        """Images of the batch's labels, or completions where it brings "tokens" and "known"."""
        tokens_BS = masked.initial_tokens(batch["label"], side**2, codebook_size, num_classes)
        if "known" in batch:
            tokens_BS = masked.with_known(tokens_BS, batch["tokens"], batch["known"])
        sampling = config.sampling
        tokens_BS = masked.decode(
            masked.guided(logits_fn(state.ema_params), sampling.guidance, mask_id),
            tokens_BS, key, mask_id=mask_id, num_steps=sampling.num_steps,
            schedule=sampling.schedule, choice_temperature=sampling.choice_temperature,
        )
        images = frozen_tokenizer.decode(model_1, state.frozen, tokens_BS[:, 1:])
        return {"image": images, "tokens": tokens_BS[:, 1:]}

    def bits(state, batch, key):
        """Bits [B] that an image's tokens take under M2T's deterministic schedule."""
        del key
        tokens_BL = tokens_of(state, batch)
        class_B1 = batch["label"][:, None] + codebook_size
        return {"bits": compression.bits(
            logits_fn(state.ema_params), jnp.concatenate([class_B1, tokens_BL], axis=1),
            compression.groups(side, side, min(12, side**2)), codebook_size=codebook_size,
            mask_id=mask_id,
        ), "num_tokens": jnp.full(tokens_BL.shape[:1], side**2)}

    def evaluate_loss(state, batch, key):
        tokens_BL = tokens_of(state, batch)
        return loss(state.ema_params, tokens_BL, batch["label"], key, train=False)

    predict = {
        "sample": sample,
        "bits": bits,
        "loss": evaluate_loss,
        "tokens": lambda state, batch, key: {"tokens": tokens_of(state, batch)},
        "preview": lambda state, batch, key: {"sample": sample(state, batch, key)["image"]},
    }
    info = {
        "codebook_size": codebook_size, "num_classes": num_classes, "grid": side,
        "levels": tuple(getattr(model_1.quantizer, "levels", ())),
        "tokenizer": fingerprint,
        "sampling": config.sampling.to_dict(),
    }
    return Stage(init, update, predict, frozen, info)


def _load_tokenizer(config) -> frozen_tokenizer.FrozenTokenizer:
    """Stage I from its run, held against what this run does with it."""
    if not config.tokenizer.workdir:
        raise ValueError(
            "A masked transformer needs a trained tokenizer: "
            "--config=configs/maskgit_transformer.py:tokenizer=WORKDIR."
        )
    trained = frozen_tokenizer.load(config.tokenizer.workdir)
    if config.data.size % trained.model.downsampling:
        raise ValueError(
            f"data.size={config.data.size} is not a multiple of the {trained.model.downsampling} "
            f"pixels that a token of {config.tokenizer.workdir!r} covers."
        )
    if config.token_cache:
        cache = make_source(f"tokens:{config.token_cache}", "train", config.data.size)
        if cache.meta["fingerprint"] != trained.fingerprint:
            raise ValueError(
                f"The tokens in {config.token_cache!r} were made by tokenizer "
                f"{cache.meta['fingerprint']}, but {config.tokenizer.workdir!r} holds tokenizer "
                f"{trained.fingerprint}."
            )
    return trained
