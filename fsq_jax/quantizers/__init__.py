"""Quantizers that return the same `Quantized`, by name: FSQ and the two VQ layers of the paper."""

from flax import linen as nn

from fsq_jax.quantizers import fsq, vq
from fsq_jax.runtime.user_error import UserError, did_you_mean

QUANTIZERS = {"fsq": fsq.FSQ, "vq": vq.VectorQuantizer, "vq_ema": vq.EMAVectorQuantizer}


def make(name: str, **kwargs) -> nn.Module:
    """Returns the quantizer called `name`, made with its own keyword arguments.

    "fsq": levels. "vq": MaskGIT's, codebook_size and channels. "vq_ema": UViM's, the same two.
    Raises UserError for another name, with the nearest one, and for sizes that cannot be.
    """
    if name not in QUANTIZERS:
        raise UserError(f"There is no quantizer {name!r}{did_you_mean(name, QUANTIZERS)}")
    try:
        return QUANTIZERS[name](**kwargs)
    except ValueError as error:  # of FSQ, whose file stands alone and knows no UserError
        raise UserError(str(error)) from None


def of_config(config) -> nn.Module:
    """Returns the quantizer of a stage I config; a step calls it `config.accumulate` times.

    The description of a stage I in a stage II config says nothing of steps.
    """
    values = dict(config.quantizer)
    if values["name"] == "vq_ema":
        values["microbatches"] = config.get("accumulate", 1)
    return make(**values)
