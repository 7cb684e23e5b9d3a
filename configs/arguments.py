"""Reads what follows the colon in --config=configs/x.py:scale=bench,quantizer=vq."""

from fsq_jax.runtime.user_error import UserError, did_you_mean


def parse(text: str | None, **defaults):
    """A namespace-like dict of `defaults`, updated by "name=value,name=value".

    A value takes the type of its default; a tuple of ints is written with dashes, "8-5-5-5".
    Every default must be given as a value, or as a tuple of strings: the choices, the first of
    which is the default.

    Raises:
      UserError: for an unknown name or choice (with the nearest right one), or a value of the
        wrong type.
    """
    values = {n: d[0] if _is_choice(d) else d for n, d in defaults.items()}
    for part in filter(None, (text or "").split(",")):
        name, separator, value = part.partition("=")
        if not separator:
            raise UserError(
                f"Config argument {part!r} is not of the form NAME=VALUE, as in "
                "scale=bench,levels=8-5-5-5."
            )
        if name not in defaults:
            raise UserError(f"Config argument {name!r} is unknown{did_you_mean(name, defaults)}")
        values[name] = _convert(name, value, defaults[name])
    return values


def text(values) -> str:
    """The argument string that `parse` reads these values from; what is empty is left out."""
    written = {
        name: "-".join(map(str, value)) if isinstance(value, tuple) else str(value)
        for name, value in values.items()
        if value not in ("", 0, (0,))
    }
    return ",".join(f"{name}={value}" for name, value in written.items())


def _is_choice(default) -> bool:
    return isinstance(default, tuple) and bool(default) and isinstance(default[0], str)


def _convert(name: str, value: str, default):
    if _is_choice(default):
        if value not in default:
            raise UserError(f"{name}={value!r} is unknown{did_you_mean(value, default)}")
        return value
    try:
        if isinstance(default, bool):
            return {"true": True, "false": False}[value.lower()]
        if isinstance(default, tuple):
            return tuple(int(v) for v in value.split("-"))
        if isinstance(default, int) and int(value) < 0:
            raise UserError
        return type(default)(value)
    except (ValueError, KeyError):
        kinds = {bool: "true or false", tuple: "numbers such as 8-5-5-5", int: "a whole number"}
        expected = kinds.get(type(default), type(default).__name__)
        raise UserError(f"{name}={value!r} can't be read as {expected}.") from None
