"""Mistakes in how tokens are drawn, and in what is measured of predictions."""

MASKED = (
    "tests/sampling/masked_steps_test.py",
    "tests/sampling/masked_test.py::test_random_mask_masks_more_than_the_least_share",
    "tests/sampling/masked_test.py::test_random_mask_follows_the_paper_s_distribution",
    "tests/sampling/masked_test.py::test_schedules_fall_from_all_to_none",
)
AUTOREGRESSIVE = (
    "tests/sampling/autoregressive_steps_test.py",
    "tests/sampling/autoregressive_test.py",
)
CROWDS = ("tests/evaluators/crowds_test.py",)

# {file: (tests, {what is wrong: (old, new)})}
PLANTED = {
    "fsq_jax/sampling/masked.py": (
        MASKED,
        {
            "confidence is minus the log-probability": (
                "log_p_BL + noise_B1 * jax.random.gumbel",
                "-log_p_BL + noise_B1 * jax.random.gumbel",
            ),
            "noise is subtracted": (
                "log_p_BL + noise_B1 * jax.random.gumbel",
                "log_p_BL - noise_B1 * jax.random.gumbel",
            ),
            "one key for all steps": ("jax.random.fold_in(key, index)", "key"),
            "one key for tokens and noise": (
                "jax.random.gumbel(key_choice,",
                "jax.random.gumbel(key_token,",
            ),
            "noise grows": ("* (1 - ratio_T)", "* ratio_T"),
            "noise stays": ("* (1 - ratio_T)", "* np.ones_like(ratio_T)"),
            "noise ignores the choice temperature": (
                "jnp.float32(choice_temperature).reshape",
                "jnp.float32(4.5).reshape",
            ),
            "known tokens are the least sure": (
                "jnp.where(masked_BL, confidence_BL, jnp.inf)",
                "jnp.where(masked_BL, confidence_BL, -jnp.inf)",
            ),
            "known tokens are drawn again": (
                "jnp.where(masked_BL, sampled_BL, tokens_BL)",
                "sampled_BL",
            ),
            "the number masked is rounded up": (
                "jnp.floor(start_B * share)",
                "jnp.ceil(start_B * share)",
            ),
            "a step may fill nothing in": ("masked_BL.sum(axis=1) - 1", "masked_BL.sum(axis=1)"),
            "logits times the temperature": (
                ".astype(jnp.float32) / temperature",
                ".astype(jnp.float32) * temperature",
            ),
            "one token too many is masked": ("values_BL < bound_B1", "values_BL <= bound_B1"),
            "the surest are masked": ("values_BL < bound_B1", "values_BL > bound_B1"),
            "ratios start at zero": ("np.arange(1, num_steps + 1,", "np.arange(0, num_steps,"),
            "masks are counted over all tokens": (
                "start_B = jnp.sum(tokens_BL == mask_id, axis=1)",
                "start_B = jnp.sum(tokens_BL >= 0, axis=1)",
            ),
            "confidence without the normaliser": (
                "picked_BL - jax.nn.logsumexp(logits_BLK, axis=-1)",
                "picked_BL",
            ),
            "what was re-masked is returned": (
                "return (jnp.where(again_BL, mask_id, sampled_BL), sampled_BL), steps",
                "return (jnp.where(again_BL, mask_id, sampled_BL), "
                "jnp.where(again_BL, mask_id, sampled_BL)), steps",
            ),
            "guidance from the logits without a class": (
                "return logits_BLK + guidance * (logits_BLK - null_BLK)",
                "return null_BLK + guidance * (logits_BLK - null_BLK)",
            ),
            "guidance towards no class": (
                "return logits_BLK + guidance * (logits_BLK - null_BLK)",
                "return logits_BLK + guidance * (null_BLK - logits_BLK)",
            ),
            "guidance drops the first token": (
                "tokens_BL.at[:, 0].set(null_token)",
                "tokens_BL.at[:, 1].set(null_token)",
            ),
            "classes are one too high": (
                "jnp.asarray(labels_B, jnp.int32)[:, None] + codebook_size",
                "jnp.asarray(labels_B, jnp.int32)[:, None] + codebook_size + 1",
            ),
            "the mask is the last class": (
                "num_tokens), codebook_size + num_classes,",
                "num_tokens), codebook_size + num_classes - 1,",
            ),
            "known and unknown are exchanged": (
                "jnp.where(known_BS, known_tokens_BS, tokens_BL[:, 1:])",
                "jnp.where(known_BS, tokens_BL[:, 1:], known_tokens_BS)",
            ),
            "training masks are rounded down": (
                "jnp.ceil(share_B * num_tokens)",
                "jnp.floor(share_B * num_tokens)",
            ),
            "one ratio for the whole batch": (
                "jax.random.uniform(key_ratio, (batch,))",
                "jax.random.uniform(key_ratio, (1,)).repeat(batch)",
            ),
            "one order for the whole batch": (
                "jax.random.uniform(key_order, (batch, num_tokens))",
                "jax.random.uniform(key_order, (1, num_tokens)).repeat(batch, 0)",
            ),
            "one key for ratios and order": (
                "jax.random.uniform(key_order,",
                "jax.random.uniform(key_ratio,",
            ),
            "masks follow what is done": (
                "mask_ratio(schedule, done_B, num_tokens)",
                "mask_ratio(schedule, 1 - done_B, num_tokens)",
            ),
            "no least share": ("* _latest(schedule, min_ratio, num_tokens)", "* 1.0"),
            "the cosine is of a half turn": (
                "np.float32(np.pi / 2) * ratio",
                "np.float32(np.pi) * ratio",
            ),
        },
    ),
    "fsq_jax/sampling/autoregressive.py": (
        AUTOREGRESSIVE,
        {
            "one key for all positions": ("jax.random.fold_in(key, position)", "key"),
            "logits times the temperature": ("logits_BV / temperature", "logits_BV * temperature"),
            "greedy takes the least likely": (
                "jnp.argmax(logits_BV, axis=-1)",
                "jnp.argmin(logits_BV, axis=-1)",
            ),
            "the wrong token is forbidden": (".at[:, 0].set(-jnp.inf)", ".at[:, 1].set(-jnp.inf)"),
            "indices are tokens": ("return tokens_BN - 1", "return tokens_BN"),
            "each token follows the first": (
                "return (cache, tokens_B), tokens_B",
                "return (cache, carry[1]), tokens_B",
            ),
            "the cache is lost": (
                "return (cache, tokens_B), tokens_B",
                "return (carry[0], tokens_B), tokens_B",
            ),
            "greedy only below zero": ("temperature <= GREEDY", "temperature < 0"),
            "token 0 wraps round wrongly": ("% (vocab_size - 1)", "% vocab_size"),
        },
    ),
    "fsq_jax/evaluators/panoptic.py": (
        CROWDS,
        {
            "crowds are ignored": ('record.get("crowd", ())', "()"),
            "stuff of predictions is not merged": ("merge_stuff(prediction, things)", "prediction"),
            "stuff of the truth is not merged": ("merge_stuff(truth, things)", "truth"),
            "not in percent": ("100 * value", "value"),
            "void is stuff": (
                "range(1, len(names)) if label not in things",
                "range(2, len(names)) if label not in things",
            ),
        },
    ),
    "fsq_jax/evaluators/depth.py": (
        CROWDS,
        {
            "the limits are not handed on": (
                "depth_error(prediction_HW, truth_HW, min_depth, max_depth)",
                "depth_error(prediction_HW, truth_HW)",
            ),
            "the median over images": (
                "np.mean([e[name] for e in errors])",
                "np.max([e[name] for e in errors])",
            ),
        },
    ),
    "fsq_jax/metrics/panoptic_quality.py": (
        ("tests/metrics/panoptic_quality_test.py", *CROWDS),
        {
            "false alarms count whole": (
                "(self.false_positives + self.false_negatives)[classes] / 2",
                "self.false_positives[classes] + self.false_negatives[classes] / 2",
            ),
            "half an overlap is a match": ("> 0.5", ">= 0.5"),
            "things are merged": (
                "np.where(is_thing, segments[..., 1], 0)",
                "np.where(is_thing, 0, segments[..., 1])",
            ),
        },
    ),
    "fsq_jax/runtime/checkpoint.py": (
        ("tests/runtime/checkpoint_test.py",),
        {
            "the best is always the largest": ('1 if best_mode == "max" else -1', "1"),
            "averages are not saved": (
                '"ema_params", "model_state", "train_only")',
                '"model_state", "train_only")',
            ),
        },
    ),
    "fsq_jax/runtime/best_checkpoint.py": (
        ("tests/runtime/checkpoint_test.py",),
        {
            "a checkpoint without the metric counts as nothing": (
                "if known else -math.inf",
                "if known else 0.0",
            ),
            "less is never better": ("self.sign * float(value)", "float(value)"),
        },
    ),
}
