"""What wrong input raises: one sentence for the user, where a bug of ours keeps its traceback."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Wrong input, found where it is checked; the message is one sentence with the values in it.

    A program ends with that sentence and status 1 (`runtime.cli`). Any other exception is a bug.
    """


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown word: "; did you mean 'fsq'?", or all that there is.

    Args:
      word: what was given.
      known: all that could have been.
    """
    known = sorted(name for name in map(str, known) if name)
    near = difflib.get_close_matches(str(word), known, n=1)
    if near:
        return f"; did you mean {near[0]!r}?"
    if len(known) > 20:
        return f"; there are {len(known)} names such as {', '.join(known[:5])}."
    return f"; there are {', '.join(known)}." if known else "; there are none."
