"""What a compiled program sends between its devices: collectives, how often, and how many bytes."""

import collections
import re

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all")
BITS = {"pred": 8, "bf16": 16}  # of the types whose names don't end in their bits

_HEAD = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$")
_OP = re.compile(rf"= (\S.*?) ({'|'.join(KINDS)})(-start)?\(")
_ARRAY = re.compile(r"([a-z]+\d*)[a-z\d]*\[([\d,]*)\]")
_CALLED = re.compile(r"(?:body|calls)=%?([\w.-]+)|(?:branch_computations)=\{([^}]*)\}")
_TRIPS = re.compile(r'known_trip_count":\{"n":"(\d+)"')


def of_program(text: str, devices: int) -> dict[str, dict[str, int]]:
    """{kind: {"count", "bytes"}} of what each device takes part in when a program runs once.

    Args:
      text: XLA's program after its passes, `compiled.as_text()`, with the shapes of one device.
      devices: over which it is partitioned.

    Bytes are those of the whole arrays, before they are scattered or after they are gathered; of
    an all-to-all and of a permutation, of each device's part. What a loop of known length holds
    counts as often as it goes round; of branches, each counts.
    """
    entry, computations = _computations(text)
    totals = {}

    def walk(name: str, times: int) -> None:
        found, called = computations[name]
        for kind, size in found:
            total = totals.setdefault(kind, collections.Counter(count=0, bytes=0))
            total.update(count=times, bytes=times * size(devices))
        for other, trips in called:
            walk(other, times * trips)

    walk(entry, 1)
    return {kind: dict(total) for kind, total in sorted(totals.items())}


def _computations(text: str) -> tuple[str, dict]:
    """(name of the first one, {name: (its collectives, [(computation it calls, how often)])})."""
    entry, name, computations = "", "", {}
    for line in text.splitlines():
        if head := _HEAD.match(line):
            name = head[2]
            entry = name if head[1] else entry
            computations[name] = ([], [])
        elif name:
            if op := _OP.search(line):
                computations[name][0].append((op[2], _size(op[1], op[2], bool(op[3]))))
            trips = int(match[1]) if (match := _TRIPS.search(line)) else 1
            for called in _CALLED.finditer(line):
                names = (called[1] or called[2]).replace("%", "").split(",")
                computations[name][1].extend((n.strip(), trips) for n in names)
    return entry, computations


def _size(shape: str, kind: str, started: bool):
    """Number of devices -> bytes of the arrays that a collective with a result of this shape works
    on. Where it was only started the result has the operands in it, then what becomes of them; but
    for older XLA's all-reduces, whose operands and results are the same."""
    if started and (kind != "all-reduce" or shape.startswith("((")):
        largest = max(map(_total, _members(shape)))
        return lambda _: largest
    whole = _total(shape)
    return lambda devices: whole * (devices if kind == "reduce-scatter" else 1)


def _members(tuple_shape: str) -> list[str]:
    """What is between the outermost commas of "(a, (b, c))"."""
    members, depth = [""], 0
    for character in tuple_shape[1:-1]:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and not depth:
            members.append("")
        else:
            members[-1] += character
    return members


def _total(shape: str) -> int:
    return sum(map(_bytes, _ARRAY.finditer(shape)))


def _bytes(array: re.Match) -> int:
    elements = 1
    for length in filter(None, array[2].split(",")):
        elements *= int(length)
    bits = BITS.get(array[1]) or int(re.search(r"\d+$", array[1])[0])
    return elements * bits // 8
