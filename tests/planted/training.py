"""Mistakes in how the stages are trained."""

TOKENIZER = ("tests/stages/maskgit_tokenizer_update_test.py",)
TRANSFORMER = ("tests/stages/maskgit_transformer_update_test.py",)
BASE = ("tests/stages/uvim_base_update_test.py",)
LM = ("tests/stages/uvim_lm_update_test.py",)
OPTIM = ("tests/stages/optim_test.py",)
OPTIONS = ("tests/options_test.py",)

PLANTED = {
    "fsq_jax/stages/adversarial.py": (
        TOKENIZER,
        {
            "rare R1 is no stronger": ("weights.r1 * weights.r1_every *", "weights.r1 *"),
            "R1 is halved": (
                "weights.r1 * weights.r1_every *",
                "0.5 * weights.r1 * weights.r1_every *",
            ),
            "R1 at the wrong steps": (
                "step % weights.r1_every == 0",
                "step % weights.r1_every == 1",
            ),
            "R1 of reconstructions": (
                "logits_and_slopes(discriminator, params, images)",
                "logits_and_slopes(discriminator, params, 1 - images)",
            ),
            "R1 is left out": ("critic + r1 + weights.lecam", "critic + weights.lecam"),
            "the adversarial weight is ignored": (
                "weights.adversarial * generator_on * generator",
                "generator_on * generator",
            ),
            "LeCam is left out": ("+ weights.lecam * lecam_B.mean()", ""),
            "the generator starts a step late": (
                "step >= weights.adversarial_start",
                "step > weights.adversarial_start",
            ),
            "the critic has the tokenizer's rate": (
                "{**config.optim, **config.discriminator_optim}",
                "{**config.discriminator_optim, **config.optim}",
            ),
        },
    ),
    "fsq_jax/stages/maskgit_tokenizer.py": (
        TOKENIZER,
        {
            "the quantizer's loss is left out": (
                "weights.reconstruction * squared_error + quantized.loss",
                "weights.reconstruction * squared_error",
            ),
            "the reconstruction's weight is ignored": (
                "weights.reconstruction * squared_error + quantized.loss",
                "squared_error + quantized.loss",
            ),
            "the perceptual weight is ignored": ("weights.perceptual * perceptual", "perceptual"),
            "the perceptual loss is left out": ("total += weights.perceptual * perceptual", "pass"),
            "averages lag one update": (
                'params["tokenizer"], state.ema_params',
                'state.params["tokenizer"], state.ema_params',
            ),
            "averages decay by the rest": ("1 - config.ema_decay", "config.ema_decay"),
            "steps are not counted": ("step=state.step + 1", "step=state.step"),
            "norms are of the updates": (
                "optax.tree.norm(grads[name])",
                "optax.tree.norm(updates)",
            ),
            "the weights are predicted with": (
                'variables = {"params": state.ema_params, **state.model_state} images,',
                'variables = {"params": state.params["tokenizer"], **state.model_state} ; images,',
            ),
            "images are held against others": (
                "squared_error(images, reconstruction)",
                "squared_error(images * 2 - 1, reconstruction)",
            ),
            "the total is not reported": (
                'metrics["loss"] = total',
                'metrics["loss"] = squared_error',
            ),
        },
    ),
    "fsq_jax/stages/maskgit_transformer.py": (
        TRANSFORMER,
        {
            "trained without dropout": ("train=True", "train=False"),
            "validation with dropout": ("train=False", "train=True"),
            "validation of the weights": (
                "return masked_loss( models, state.ema_params,",
                "return masked_loss( models, state.params,",
            ),
            "labels are dropped where they should stay": (
                "jnp.where(dropped_B, models.mask_id, label_B + models.codebook_size)",
                "jnp.where(dropped_B, label_B + models.codebook_size, models.mask_id)",
            ),
            "labels are dropped to class 0": (
                "jnp.where(dropped_B, models.mask_id, label_B + models.codebook_size)",
                "jnp.where(dropped_B, models.codebook_size, label_B + models.codebook_size)",
            ),
            "labels are not dropped": (
                "config.label_dropping, label_B.shape",
                "0.0, label_B.shape",
            ),
            "classes are indices": (
                "models.mask_id, label_B + models.codebook_size)",
                "models.mask_id, label_B)",
            ),
            "one key for all steps": ("jax.random.fold_in(key, state.step)", "key"),
            "masked and known are exchanged": (
                "jnp.where(mask_BL, models.mask_id, tokens_BL)",
                "jnp.where(mask_BL, tokens_BL, models.mask_id)",
            ),
            "the schedule is ignored": (", schedule=masking.schedule", ""),
            "the least share is ignored": ("min_ratio=masking.min_ratio,", ""),
            "accuracy of all tokens": ("== tokens_BL) & mask_BL", "== tokens_BL)"),
            "the class token is scored": ("logits_BSV[:, 1:]", "logits_BSV[:, :-1]"),
            "norms are forgotten": (
                'metrics | {"gradient_norm": optax.tree.norm(grads)}',
                'metrics | {"gradient_norm": optax.tree.norm(state.params)}',
            ),
        },
    ),
    "fsq_jax/stages/stage.py": (
        TRANSFORMER,
        {
            "averages lag one update": (
                "incremental_update(params, state.ema_params",
                "incremental_update(state.params, state.ema_params",
            ),
            "averages decay by the rest": ("1 - ema_decay", "ema_decay"),
            "steps are not counted": ("step=state.step + 1", "step=state.step"),
            "the optimiser's state is lost": ("opt_state=opt_state", "opt_state=state.opt_state"),
        },
    ),
    "fsq_jax/stages/uvim_base.py": (
        BASE,
        {
            "the quantizer's loss is left out": (
                "total = task_loss + quantized.loss",
                "total = task_loss",
            ),
            "trained without code dropout": ("train=True", "train=False"),
            "one key for all steps": ("jax.random.fold_in(key, state.step)", "key"),
            "the codebook stays": ("state = state.replace(model_state=model_state)", ""),
            "context in [0, 1] in training": (
                "labels, context = coder.task.to_inputs(batch) labels = coder.patches(labels)",
                "labels, context = coder.task.to_inputs(batch); context = context / 2 + 0.5; "
                "labels = coder.patches(labels)",
            ),
            "the weights are predicted with": (
                'return {"params": state.ema_params, **state.model_state}',
                'return {"params": state.params, **state.model_state}',
            ),
        },
    ),
    "fsq_jax/stages/uvim_lm.py": (
        LM,
        {
            "indices are tokens in the loss": (
                "cross_entropy(logits_BNV, indices_BN + 1)",
                "cross_entropy(logits_BNV, indices_BN)",
            ),
            "indices are tokens in the accuracy": (
                "argmax(-1) == indices_BN + 1",
                "argmax(-1) == indices_BN",
            ),
            "validation of the weights": (
                "return models.loss(state.ema_params,",
                "return models.loss(state.params,",
            ),
            "the loss is a sum": ("indices_BN + 1).mean(axis=1)", "indices_BN + 1).sum(axis=1)"),
        },
    ),
    "fsq_jax/stages/optim.py": (
        OPTIM,
        {
            "AdamW without b2": ("b1=b1, b2=b2,", "b1=b1,"),
            "AdamW without b1": ("b1=b1, b2=b2,", "b2=b2,"),
            "AdamW decays everything": (
                "weight_decay=weight_decay, mask=kernels",
                "weight_decay=weight_decay",
            ),
            "AdamW decays nothing": ("weight_decay=weight_decay, mask=kernels", "weight_decay=0.0"),
            "clipped last": (
                "steps.insert(0, optax.clip_by_global_norm",
                "steps.append(optax.clip_by_global_norm",
            ),
            "never clipped": ("if clip_norm > 0:", "if clip_norm > 1e9:"),
            "clipped leaf by leaf": (
                "optax.clip_by_global_norm(clip_norm)",
                "optax.clip(clip_norm)",
            ),
            "factored from 128 on": ("min_dim_size_to_factor=32", "min_dim_size_to_factor=128"),
            "another decay": ("decay_rate=0.8", "decay_rate=0.5"),
            "the cap is a floor": ("jnp.minimum(decay_cap,", "jnp.maximum(decay_cap,"),
            "the decay is a step ahead": ("(step + 1.0) ** -exponent", "(step + 2.0) ** -exponent"),
            "the average is corrected": ("debias=False", "debias=True"),
            "the average in float32": (", accumulator_dtype=jnp.bfloat16", ""),
            "decay times the learning rate": (
                "optax.add_decayed_weights(weight_decay, kernels)",
                "optax.add_decayed_weights(weight_decay * learning_rate, kernels)",
            ),
            "decay of everything": (
                "optax.add_decayed_weights(weight_decay, kernels)",
                "optax.add_decayed_weights(weight_decay)",
            ),
            "the rate counts twice": ("schedule_of(1.0)", "schedule_of(learning_rate)"),
            "multipliers are ignored by Adafactor": (
                "optax.scale(learning_rate), *multiply,",
                "optax.scale(learning_rate),",
            ),
            "multipliers are ignored by AdamW": ("[adam, *multiply]", "[adam]"),
            "the cosine is too long": (
                "optax.cosine_decay_schedule(learning_rate, total_steps)",
                "optax.cosine_decay_schedule(learning_rate, 2 * total_steps)",
            ),
            "warm-up starts at the top": (
                "warmup_constant_schedule(0.0,",
                "warmup_constant_schedule(learning_rate,",
            ),
            "scales are kernels": ('== "kernel"', '!= "bias"'),
            "prefixes fit": ('if p.fullmatch(name)), "")', 'if p.match(name)), "")'),
            "microbatches are summed": (
                "lambda total: total / num_microbatches",
                "lambda total: total",
            ),
            "one key for all microbatches": ("jax.random.fold_in(key, i)", "key"),
        },
    ),
    "fsq_jax/metrics/losses.py": (
        ("tests/metrics/losses_test.py", *TOKENIZER),
        {
            "the generator wants to be found": (
                "jax.nn.softplus(-fake_logits_B",
                "jax.nn.softplus(fake_logits_B",
            ),
            "the critic calls real ones fake": (
                "jax.nn.softplus(-real) + jax.nn.softplus(fake)",
                "jax.nn.softplus(real) + jax.nn.softplus(fake)",
            ),
            "R1 is a mean over pixels": (
                "reshape(gradient.shape[0], -1).sum(-1)",
                "reshape(gradient.shape[0], -1).mean(-1)",
            ),
            "R1 is not squared": ("jnp.square(gradient)", "jnp.abs(gradient)"),
            "LeCam of the wrong mean": ("real - state.fake", "real - state.real"),
            "LeCam decays by the rest": (
                "decay * old + (1 - decay) * new",
                "(1 - decay) * old + decay * new",
            ),
            "smoothing by a sum": (
                "label_smoothing * logits.mean(-1)",
                "label_smoothing * logits.sum(-1)",
            ),
            "no smoothing of the target": ("(1 - label_smoothing) * target_logit", "target_logit"),
            "divided by all tokens": ("jnp.maximum(mask_BL.sum(-1), 1)", "mask_BL.shape[-1]"),
            "all tokens count": ("jnp.where(mask_BL, loss_BL, 0.0).sum(-1)", "loss_BL.sum(-1)"),
            "class 0 costs nothing": ("(ids >= 0)", "(ids > 0)"),
            "the squared error is absolute": ("jnp.square(difference)", "jnp.abs(difference)"),
        },
    ),
}
