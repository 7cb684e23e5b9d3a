"""Mistakes in the quantizers that look nothing up."""

BINARY = ("tests/quantizers/binary_test.py",)
RESIDUAL = ("tests/quantizers/residual_fsq_test.py",)

PLANTED = {
    "fsq_jax/quantizers/binary.py": (
        BINARY,
        {
            "zero is positive": ("jnp.where(z > 0, 1.0, -1.0)", "jnp.where(z >= 0, 1.0, -1.0)"),
            "the first bit is the most significant": (
                "bits << jnp.arange(bits.shape[-1], dtype=jnp.int32)",
                "bits << jnp.arange(bits.shape[-1], dtype=jnp.int32)[::-1]",
            ),
            "half of an entropy": ("jnp.log1p(jnp.exp(-distance_ND)) +", "0 * distance_ND +"),
            "tokens' entropies are of a bit": (
                "entropy_ND.sum(axis=1).mean()",
                "entropy_ND.mean(axis=1).mean()",
            ),
            "the library's floor": ("jnp.maximum(mean_GAB, 1e-20)", "jnp.maximum(mean_GAB, 1e-3)"),
            "no floor": ("jnp.maximum(mean_GAB, 1e-20)", "mean_GAB"),
            "bits are not what they are": (
                "[choices * (1 - p), choices * p]",
                "[choices * (1 - p), choices * (1 - p)]",
            ),
            "half of the odds": ("4 * self.scale /", "2 * self.scale /"),
            "codes spread the tokens": (
                'metrics["token_entropy"] - self.diversity_weight *',
                'metrics["token_entropy"] + self.diversity_weight *',
            ),
            "the whole gradient": ("self.scale * (x_ND - jax", "(x_ND - jax"),
            "off the sphere": ("return self.channels**-0.5", "return 1.0"),
            "not on the sphere": ("jax.lax.rsqrt(jnp.maximum(length_N1, 1e-24))", "1.0"),
            "the floor of a length is left out": ("jnp.maximum(length_N1, 1e-24)", "length_N1"),
            "an index outside is a code": ("is_code = (indices >= 0) &", "is_code = True &"),
        },
    ),
    "fsq_jax/quantizers/residual_fsq.py": (
        RESIDUAL,
        {
            "the issue's scales": ("float(n) ** i for n", "float(n - 1) ** i for n"),
            "a hard bound": (
                "jnp.tanh(z.astype(jnp.float32) / limit) * limit",
                "jnp.clip(z.astype(jnp.float32), -limit, limit)",
            ),
            "a narrow bound": ("n / (n - 1) for n in levels", "1.0 for n in levels"),
            "outermost values are out of reach": ("0, 2 * half)", "0, 2 * half - 1)"),
            "what is left is detached": (
                "left, total = left - part,",
                "left, total = left - jax.lax.stop_gradient(part),",
            ),
            "the offset stays": ("(code - offset_d) / gain_d", "code / gain_d"),
            "the first stage is most significant": (
                "size**i for i in range(num_parts)",
                "size ** (num_parts - 1 - i) for i in range(num_parts)",
            ),
            "the mean is not taken off": (
                "self.bias - self.mean.value * gain_Sd",
                "self.bias",
            ),
            "the variance is a deviation": (
                "jax.lax.rsqrt(self.variance.value + 1e-10)",
                "1 / (self.variance.value + 1e-10)",
            ),
            "the mean square is a variance": (" - mean**2, 0)", ", 0)"),
            "evaluation learns": ('"layer_norm" and train and not', '"layer_norm" and not'),
            "momentum and rest are exchanged": (
                "self.momentum * state[name] + (1 - self.momentum) * value",
                "(1 - self.momentum) * state[name] + self.momentum * value",
            ),
            "all stages start alike": ("lambda: self._fineness() ** -2", "lambda: jnp.ones(shape)"),
            "groups drop their noise": ("noise=self.noise,", "noise=0.0,"),
        },
    ),
}
