"""Finite scalar quantization (FSQ) in JAX: the Flax Linen module and the pure functions it is."""

import importlib.util
import sys

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


def _check_command(argv: list[str]) -> None:
    """Ends `python -m fsq_jax.COMMAND` with a sentence where the layer alone is installed."""
    module = argv[argv.index("-m") + 1] if "-m" in argv[:-1] else ""
    if module.startswith("fsq_jax.") and importlib.util.find_spec("ml_collections") is None:
        sys.exit(
            f"Error: {module} needs more than the layer; install the package with its extra train, "
            "gpu or tpu: pip install 'fsq_jax[train]', or pip install '.[train]' in a clone."
        )


if sys.argv[:1] == ["-m"]:  # which it is while `python -m` imports the package of its module
    _check_command(sys.orig_argv)
