"""Mistakes in networks, quantizers and tasks."""

TOKENIZER = ("tests/stages/maskgit_tokenizer_update_test.py",)
TRANSFORMER = ("tests/stages/maskgit_transformer_update_test.py",)
BASE = ("tests/stages/uvim_base_update_test.py",)
LM = ("tests/stages/uvim_lm_update_test.py",)
KEPT = "test_as_many_codes_are_kept_as_dropped_and_any_number_as_often"
FSQ = ("tests/quantizers/fsq_test.py",)
TASKS = ("tests/tasks/tasks_test.py",)
ATTENTION = (
    "tests/models/attention_test.py::test_agrees_with_flax",
    "tests/models/attention_test.py::test_causal_attention_and_attention_to_others_agree_with_flax",
    "tests/models/attention_test.py::test_dropout_zeroes_weights_after_the_softmax",
    "tests/models/attention_test.py::test_keep_mask_has_the_promised_share_and_independent_columns",
    "tests/models/attention_test.py::test_dropout_keeps_the_mean_and_the_dtype",
)
VIT = (
    "tests/models/vit_test.py::test_patches_are_in_reading_order_and_go_back",
    "tests/models/vit_test.py::test_encoder_starts_like_the_reference",
)
VQ = (
    "tests/quantizers/vq_test.py::test_vq_is_the_formula",
    "tests/quantizers/vq_test.py::test_vq_gradients",
    "tests/quantizers/vq_test.py::test_ema_is_the_loop",
    "tests/quantizers/vq_test.py::test_ema_result",
    "tests/quantizers/vq_test.py::test_the_entropy_of_groups_is_that_of_devices",
)
NEAREST = (
    "tests/quantizers/nearest_test.py",
    "tests/quantizers/vq_test.py::test_the_entropy_of_groups_is_that_of_devices",
)
ESTIMATORS = ("tests/quantizers/estimators_test.py",)
VQ_OPTIONS = ("tests/quantizers/vq_options_test.py", "tests/quantizers/vq_reference_test.py")

PLANTED = {
    "fsq_jax/models/discriminator.py": (
        TOKENIZER,
        {
            "a residual sum is not divided": ("(a + b) / math.sqrt(2)", "a + b"),
            "another slope": ("x, 0.2 * x", "x, 0.1 * x"),
            "another blur": (
                "before + 3 * (even + odd) + after) / 8",
                "before + 2 * (even + odd) + after) / 6",
            ),
            "the shortcut is not blurred": (
                "use_bias=False)(pool(values))",
                "use_bias=False)(tuple(nn.avg_pool(x, (2, 2), (2, 2)) for x in values))",
            ),
            "a layer is linear": ("values = _leaky_relu(values)", "values = tuple(values)"),
            "the critic's loss trains the generator": (
                "grad_images * (of_images_B / of_params_B)[:, None, None, None]",
                "grad_images",
            ),
            "the generator's loss trains the critic": (
                "of_params_B, of_images_B = grads",
                "of_params_B, of_images_B = sum(grads), grads[1]",
            ),
            "R1's gradient is halved": ("+ 2 * grad_squared_B", "+ grad_squared_B"),
            "biases learn from all alike": ("grad, scale_B @ sums_BC", "grad, sums_BC.sum(0)"),
        },
    ),
    "fsq_jax/models/maskgit_tokenizer.py": (
        TOKENIZER,
        {
            "the shortcut reads the input": (
                'self.shortcut == "output" else x_BHWC',
                "False else x_BHWC",
            ),
            "pixels are dropped, not averaged": (".mean((2, 4))", ".max((2, 4))"),
        },
    ),
    "fsq_jax/models/group_norm.py": (
        TOKENIZER,
        {"another epsilon": ("epsilon: float = 1e-6", "epsilon: float = 1e-2")},
    ),
    "fsq_jax/models/maskgit_transformer.py": (
        TRANSFORMER,
        {
            "no dropout on the embeddings": (
                'self.drop(self.norm("embeddings_ln")(x_BLD))',
                'self.norm("embeddings_ln")(x_BLD)',
            ),
            "no dropout after attention": ("x_BLD + self.drop(read_BLD)", "x_BLD + read_BLD"),
            "no dropout after the MLP": ("x_BLD + self.drop(out_BLD)", "x_BLD + out_BLD"),
            "no dropout on attention": (
                "attention_rate = self.attention_dropout if train else 0.0",
                "attention_rate = 0.0",
            ),
            "one rate for both dropouts": (
                "attention_rate = self.attention_dropout if train else 0.0",
                "attention_rate = rate",
            ),
            "no way around attention": ("x_BLD + self.drop(read_BLD)", "self.drop(read_BLD)"),
            "no bias of the words": (
                "return logits_BLV + bias_V[:num_logits]",
                "return logits_BLV",
            ),
            "no positions": ("+ positions_LD.astype(self.dtype)", ""),
        },
    ),
    "fsq_jax/models/layers.py": (
        TRANSFORMER,
        {
            "another epsilon": ("epsilon: float = 1e-12", "epsilon: float = 1e-3"),
            "the exact GELU": ("approximate=True", "approximate=False"),
        },
    ),
    "fsq_jax/models/attention.py": (
        ATTENTION + TRANSFORMER + LM,
        {
            "scores are not scaled": ("* head_dim**-0.5", "* 1.0"),
            "what dropout keeps is not scaled up": ("(1 / (1 - dropped_share(rate)))", "1.0"),
            "the share dropped is kept": ("return values >= round(", "return values < round("),
            "a token does not see itself": (
                "jnp.arange(num_keys) <= jnp.arange(num_queries)[:, None]",
                "jnp.arange(num_keys) < jnp.arange(num_queries)[:, None]",
            ),
            "the future is seen": ("if causal: earlier_QK", "if False:\n        earlier_QK"),
            "dropout in 64ths": ("_STEPS = 2**16", "_STEPS = 2**6"),
            "a mask for every head": (
                "weights_BHQK.shape[-2:] if shared else weights_BHQK.shape",
                "weights_BHQK.shape",
            ),
        },
    ),
    "fsq_jax/models/uvim_base.py": (
        (*BASE, "tests/models/uvim_base_test.py::" + KEPT),
        {
            "no code is dropped": ('if train and self.code_dropout == "random":', "if False:"),
            "dropped codes are kept": (
                "jnp.where(keep_BN[..., None], codes_BNd, 0)",
                "jnp.where(keep_BN[..., None], 0, codes_BNd)",
            ),
            "the decoder has the encoder's context": (
                "x_BPD += self.ctx_dec_embedding(context_BHWC)",
                "x_BPD += self.ctx_enc_embedding(context_BHWC)",
            ),
            "the decoder has no positions": (
                "self.decoder(x_BPD + self.decoder_positions(x_BPD.shape[1]))",
                "self.decoder(x_BPD)",
            ),
            "codes are taken, not averaged": ('width), "linear")', 'width), "nearest")'),
            "all codes are never kept": ("0, num_codes + 1)", "0, num_codes)"),
            "one code too many is kept": ("order_BN < count_B1", "order_BN <= count_B1"),
        },
    ),
    "fsq_jax/models/vit.py": (
        VIT + LM,
        {
            "another epsilon": ("LN_EPSILON = 1e-6", "LN_EPSILON = 1e-2"),
            "no last norm": (
                'return LayerNorm(LN_EPSILON, name="encoder_norm")(x_BLD)',
                'return x_BLD + 0 * LayerNorm(LN_EPSILON, name="encoder_norm")(x_BLD)',
            ),
            "pixels of a patch in columns": (
                "return x.swapaxes(2, 3).reshape(batch, -1, patch * patch, *rest)",
                "return x.transpose(0, 1, 3, 4, 2, *range(5, x.ndim)).reshape("
                "batch, -1, patch * patch, *rest)",
            ),
        },
    ),
    "fsq_jax/models/uvim_lm.py": (
        LM,
        {
            "indices before are tokens": (
                "jnp.pad(indices_BN[:, :-1] + 1,",
                "jnp.pad(indices_BN[:, :-1],",
            ),
            "each token sees itself": (
                "jnp.pad(indices_BN[:, :-1] + 1, ((0, 0), (1, 0)))",
                "indices_BN + 1",
            ),
            "the image is not read": (
                "x_BND + self.CrossAttn(self.LayerNorm2(x_BND), memory_BPD)",
                "x_BND + self.CrossAttn(self.LayerNorm2(x_BND))",
            ),
            "self-attention sees the future": (
                "self.SelfAttn(self.LayerNorm1(x_BND), causal=True)",
                "self.SelfAttn(self.LayerNorm1(x_BND))",
            ),
        },
    ),
    "fsq_jax/quantizers/vq.py": (
        VQ + TOKENIZER + BASE,
        {
            "the codebook's loss moves the encoder": (
                "jnp.mean((q_ND - jax.lax.stop_gradient(z_ND)) ** 2)",
                "jnp.mean((q_ND - z_ND) ** 2)",
            ),
            "commitment moves the codebook": (
                "jnp.mean((jax.lax.stop_gradient(q_ND) - z_ND) ** 2)",
                "jnp.mean((q_ND - z_ND) ** 2) + 0",
            ),
            "the commitment's weight is ignored": (
                'loss += self.commitment_weight * metrics["commitment_loss"]',
                'loss += 0.25 * metrics["commitment_loss"]',
            ),
            "the entropy's weight is ignored": (
                'self.entropy_weight * metrics["entropy_loss"]',
                '0.1 * metrics["entropy_loss"]',
            ),
            "groups are counted as their size": ("return examples // group", "return group"),
            "counts of a weak type, for which a step is compiled twice": (
                "jnp.full(shape[:1], count, jnp.float32)",
                "jnp.full(shape[:1], count)",
            ),
            "no straight-through gradient": (
                "self.quantized(z, z_ND, q_ND",
                "self.quantized(z, jax.lax.stop_gradient(z_ND), q_ND",
            ),
            "the furthest word": (
                "nearest.nearest(z_ND, codebook_KD)\n        entropy",
                "nearest.nearest(-z_ND, codebook_KD)\n        entropy",
            ),
            "tokens are not standardised": ("if self.standardize: z_ND", "if False: z_ND"),
            "words are not of unit length": (
                "return unit(sums_KD)",
                "return sums_KD",
            ),
            "commitment to the running codebook is left out": (
                'loss = self.commitment_weight * metrics["commitment_loss"]',
                'loss = 0.0 * metrics["commitment_loss"]',
            ),
        },
    ),
    "fsq_jax/runtime/placement.py": (
        ("tests/quantizers/all_quantizers_test.py::test_eight_devices_are_one",),
        {
            "explicit axes are left to each function": (
                "if not cut.mesh.explicit_axes:",
                "if True:",
            ),
        },
    ),
    "fsq_jax/quantizers/nearest.py": (
        NEAREST,
        {
            "the last of the nearest": ("least_N < distance_N", "least_N <= distance_N"),
            "indices within a block": ("start + at_N", "at_N"),
            "a block is filled up with zeros": ("constant_values=FAR", "constant_values=0.0"),
            "sums run on into the next code": (
                "jnp.where(is_first, x_right, x_left + x_right)",
                "x_left + x_right",
            ),
            "codes that none chose get a sum": (
                "jnp.where(counts_K[:, None] > 0, running_ND[last_K], 0.0)",
                "running_ND[last_K]",
            ),
            "the length of tokens is in the logits": (
                "return matmul(2 * z_ND, codebook_KD.T) - squared_K",
                "return matmul(2 * z_ND, codebook_KD.T) - squared_K - (z_ND**2).sum(1)[:, None]",
            ),
            "all devices' tokens are taken for one's": (
                "x.shape[0] // (mesh.size if mesh else 1)",
                "x.shape[0]",
            ),
            "every device sorts all tokens": ("if mesh is None:", "if True:"),
        },
    ),
    "fsq_jax/quantizers/entropy.py": (
        VQ + NEAREST,
        {
            "the entropy of the mean is added": (
                "return token_entropy + jnp.sum(mean",
                "return token_entropy - jnp.sum(mean",
            ),
            "the entropy of the mean is subtracted": (
                "return token_entropy + choices_G.mean()",
                "return token_entropy - choices_G.mean()",
            ),
            "groups of neighbours": (
                "rows = (examples // num_groups, num_groups, -1, p_NK.shape[1])",
                "rows = (num_groups, examples // num_groups, -1, p_NK.shape[1])",
            ),
            "the mean over codes isn't taken from the gradient": ("v_Nk - mean_v_N1", "v_Nk"),
            "a better block doesn't lessen the sums before it": (
                "jnp.exp(shift_N1) * sum_N1 + sum_here_N1",
                "sum_N1 + sum_here_N1",
            ),
            "words' own lengths have no gradient": (
                " - g_Nk.sum(axis=0)[:, None] * words_kD",
                "",
            ),
            "all groups have the first one's slope": (
                "jnp.broadcast_to(x_Gk[:, None], rows)",
                "jnp.broadcast_to(x_Gk[:1, None], rows)",
            ),
        },
    ),
    "fsq_jax/quantizers/estimators.py": (
        ESTIMATORS + VQ_OPTIONS,
        {
            "a reflection": ("+ 2 * along_u_N1 * v_ND", ""),
            "the rotation goes back": ("2 * along_u_N1 * v_ND", "2 * along_u_N1 * u_ND"),
            "nothing is stretched": (
                "1.0, q_norm_N1 / jnp.maximum(z_norm_N1, epsilon)",
                "1.0, 1.0",
            ),
            "the code takes a gradient": (
                "jax.lax.stop_gradient(q_ND) + (z_ND",
                "q_ND + (z_ND",
            ),
        },
    ),
    "fsq_jax/quantizers/simvq.py": (
        VQ_OPTIONS,
        {
            "the codebook's loss moves the encoder": (
                "jnp.mean((q_ND - jax.lax.stop_gradient(z_ND)) ** 2)",
                "jnp.mean((q_ND - z_ND) ** 2)",
            ),
            "both losses weigh alike": (
                'self.commitment_weight * metrics["commitment_loss"]',
                'metrics["commitment_loss"]',
            ),
            "words of length 1 on the average times sqrt(D)": (
                "nn.initializers.normal(self.width**-0.5)",
                "nn.initializers.normal(1.0)",
            ),
            "another start of the layer": ("bound = shape[0] ** -0.5", "bound = 1.0"),
        },
    ),
    "fsq_jax/quantizers/codebook.py": (
        VQ_OPTIONS,
        {
            "codewords are not projected back": (
                "return self.project_out(codewords) if self.codebook_channels else codewords",
                "return jnp.tile(codewords, self.channels)[..., : self.channels]",
            ),
            "always straight through": (
                "estimators.ESTIMATORS[self.gradient]",
                "estimators.straight_through",
            ),
        },
    ),
    "fsq_jax/quantizers/running_codebook.py": (
        VQ_OPTIONS,
        {
            "counts are not smoothed": (
                "return sums_KD / smoothed_K[:, None]",
                "return sums_KD / counts_K[:, None]",
            ),
            "each part of a batch draws of its own": (
                "(jnp.cumsum(present_B) - 1)[example_K], 0)",
                "example_K % z_bTD.shape[0], 0)",
            ),
            "a token for several words": (
                "jax.random.permutation(key, max(num_codes, num_tokens))[:num_codes]",
                "jax.random.randint(key, (num_codes,), 0, num_tokens)",
            ),
            "the threshold counts all steps": (
                "count = threshold / (1 - momentum)",
                "count = threshold",
            ),
            "words without a seed become 0": ('& (batch["seeded"] > 0)', ""),
            "all words are replaced": ('(state["counts"] < count) &', ""),
        },
    ),
    "fsq_jax/quantizers/fsq.py": (
        FSQ,
        {
            "the last channel counts least": (
                "math.prod(levels[:i]) for i in",
                "math.prod(levels[i + 1 :]) for i in",
            ),
            "no straight-through gradient": (
                "x + jax.lax.stop_gradient(jnp.round(x) - x)",
                "jax.lax.stop_gradient(jnp.round(x))",
            ),
            "the shift goes the other way": (
                "jnp.tanh(SQUASHES[squash] * z + shifts)",
                "jnp.tanh(SQUASHES[squash] * z - shifts)",
            ),
            "the offset is forgotten": ("* radius - offset", "* radius"),
            "codes are not scaled": (
                "(round_ste(bounded - fraction) + fraction) / half",
                "round_ste(bounded - fraction) + fraction",
            ),
            "indices in the dtype of z": (
                "digits = jnp.round(codes * half + half).astype(jnp.int32)",
                "digits = jnp.floor(codes * half + half).astype(jnp.int32)",
            ),
            "noise of two levels": ("minval=-0.5, maxval=0.5", "minval=-1.0, maxval=1.0"),
            "noise for each channel": ("(1,) * (raw.ndim - 1)", "raw.shape[1:]"),
            "as many raw as perturbed": ("kind < 1.5 * noise", "kind < 2 * noise"),
            "noise in evaluation": ("if train and self.noise", "if self.noise"),
        },
    ),
    "fsq_jax/tasks/depth.py": (
        TASKS,
        {
            "context in [0, 1]": ('batch["image"] * 2 - 1', 'batch["image"]'),
            "bin 0 is trained on": ('jnp.where(labels["depth"] == 0, 0, loss_BHW)', "loss_BHW"),
            "a bin's lower end": ("astype(jnp.float32) + 0.5)", "astype(jnp.float32))"),
            "bins are rounded": (
                "jnp.floor(share * self.num_bins)",
                "jnp.round(share * self.num_bins)",
            ),
            "the least depth is forgotten": (
                "astype(jnp.float32) - self.min_depth)",
                "astype(jnp.float32))",
            ),
        },
    ),
    "fsq_jax/tasks/panoptic.py": (
        TASKS,
        {
            "context in [0, 1]": ('batch["image"] * 2 - 1', 'batch["image"]'),
            "classes and instances are exchanged": (
                '"semantics": segments[..., 0], "instances": segments[..., 1]',
                '"semantics": segments[..., 1], "instances": segments[..., 0]',
            ),
            "small segments stay": ("share_BN > self.min_fraction", "share_BN >= 0"),
            "only classes are trained on": (
                "for kind in self.kinds ]",
                "for kind in ['semantics'] ]",
            ),
        },
    ),
    "fsq_jax/tasks/colorization.py": (
        TASKS,
        {
            "context in [0, 1]": ('grey(batch["image"]) * 2 - 1', 'grey(batch["image"])'),
            "labels in [0, 1]": ('{"color": batch["image"] * 2 - 1}', '{"color": batch["image"]}'),
            "red and blue are exchanged": ("(0.2989, 0.5870, 0.1140)", "(0.1140, 0.5870, 0.2989)"),
            "predictions in [-1, 1]": (
                '(jnp.clip(logits["color"].astype(jnp.float32), -1, 1) + 1) / 2',
                'jnp.clip(logits["color"].astype(jnp.float32), -1, 1)',
            ),
        },
    ),
}
