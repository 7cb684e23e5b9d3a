"""Finite scalar quantization (FSQ) in JAX: the Flax Linen module and the pure functions it is."""

from fsq_jax.quantizers.fsq import (
    FSQ,
    LEVELS,
    Quantized,
    bound,
    codebook_size,
    codes_to_indices,
    indices_to_codes,
    quantize,
    round_ste,
)

__all__ = [
    "FSQ",
    "LEVELS",
    "Quantized",
    "bound",
    "codebook_size",
    "codes_to_indices",
    "indices_to_codes",
    "quantize",
    "round_ste",
]
