"""What no network can be made of, whichever it is: sizes below 1, an unknown dtype."""

from collections.abc import Mapping

from fsq_jax.runtime.user_error import UserError

DTYPES = ("float32", "bfloat16", "float16")
_MAY_BE_0 = ("num_res_blocks", "dense_layers", "depth", "encoder_depth", "decoder_depth")


def check(model: Mapping) -> None:
    """Raises a UserError for a value of `config.model` that no network has, with its name."""
    if model["dtype"] not in DTYPES:
        raise UserError(f"model.dtype={model['dtype']!r} must be one of {DTYPES}.")
    for name, value in model.items():
        least = 0 if name in _MAY_BE_0 else 1
        listed = value if isinstance(value, tuple) else (value,)
        whole = [v for v in listed if isinstance(v, int) and not isinstance(v, bool)]
        if not listed or any(v < least for v in whole):
            raise UserError(f"model.{name}={value} must be at least {least}.")
