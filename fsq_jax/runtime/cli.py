"""How a program ends on a mistake: one sentence on stderr, and no stack of frames."""

import functools
import os
import sys
from collections.abc import Callable

from absl import app, flags, logging

# What wrong input raises: by our own checks, by a config's, by ml_collections for its keys.
_MISTAKES = (ValueError, FloatingPointError, OSError)
_FLAG_MISTAKES = (*_MISTAKES, AttributeError, KeyError, TypeError)


def run(main: Callable) -> None:
    """Parses the flags and calls `main`; a mistake ends the program with status 1.

    Set FSQ_JAX_TRACEBACK=1 to see where an error came from.
    """
    app.run(_friendly(_quiet(main), _MISTAKES), flags_parser=_friendly(_parse, _FLAG_MISTAKES))


def _parse(argv: list[str]) -> list[str]:
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        # Where a config raised, its traceback is in the text, and what it said in the last line.
        raise ValueError(lines[-1] if "Traceback" in str(error) else lines[0]) from error
    except (AttributeError, KeyError) as error:  # an override of a key that the config lacks
        key, *hint = _sentence(error).strip('"').split(" ", 1)
        if not key.startswith("'"):
            raise
        raise ValueError(" ".join([f"The config has no {key}.", *hint])) from error


def _quiet(main: Callable) -> Callable:
    def wrapped(argv):
        if not flags.FLAGS["verbosity"].present:  # Orbax has much to say at the level of INFO
            logging.set_verbosity(logging.ERROR)
        return main(argv)

    return wrapped


def _sentence(error: Exception) -> str:
    """What an error says, on one line; ml_collections wraps one error into another."""
    while len(error.args) == 1 and isinstance(error.args[0], Exception):
        error = error.args[0]
    text = error.args[0] if len(error.args) == 1 else error
    return " ".join(str(text).split())


def _friendly(function: Callable, mistakes: tuple[type[Exception], ...]) -> Callable:
    @functools.wraps(function)
    def wrapped(argv):
        try:
            return function(argv)
        except mistakes as error:
            if os.environ.get("FSQ_JAX_TRACEBACK"):
                raise
            print(f"Error: {_sentence(error)}", file=sys.stderr, flush=True)
            sys.exit(1)

    return wrapped
