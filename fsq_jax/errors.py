"""How a program ends on a mistake: one sentence on stderr, and no stack of frames."""

import functools
import os
import sys
from collections.abc import Callable

from absl import flags, logging


def friendly(main: Callable) -> Callable:
    """A `main` that ends with status 1 and the error's message where its input was wrong.

    Set FSQ_JAX_TRACEBACK=1 to see where an error came from.
    """

    @functools.wraps(main)
    def wrapped(*args, **kwargs):
        if not flags.FLAGS["verbosity"].present:  # Orbax has much to say at the level of INFO
            logging.set_verbosity(logging.WARNING)
        try:
            return main(*args, **kwargs)
        except (ValueError, FloatingPointError, OSError) as error:
            if os.environ.get("FSQ_JAX_TRACEBACK"):
                raise
            print(f"Error: {error}", file=sys.stderr, flush=True)
            sys.exit(1)

    return wrapped
