"""What of a compiled program the host can queue in advance, and what it can't."""

import re

_LINE = re.compile(r"^\s+(?:ROOT )?%?[\w.-]+ = (?:\(.*?\)|\S+) ([\w-]+)\(")
_FREE = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast")


def of_program(text: str) -> dict[str, int]:
    """{"operations" of a program in its order, "operations_after_wait"}: those that come after its
    last loop of unknown length, whose end the host of a GPU waits for; 0 without such a loop.

    Args:
      text: XLA's program after its passes, `compiled.as_text()`. Loops count once, and what needs
        no time of the device doesn't count.
    """
    count = waited_at = 0
    for line in text[text.index("\nENTRY ") :].splitlines():
        operation = _LINE.match(line)
        if not operation or operation[1] in _FREE:
            continue
        count += 1
        if operation[1] == "while" and "known_trip_count" not in line:
            waited_at = count
    return {"operations": count, "operations_after_wait": count - waited_at if waited_at else 0}
