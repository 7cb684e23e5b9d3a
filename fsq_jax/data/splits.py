"""How data is asked for: the text of a spec ("tfds:mnist:train[:10%]") and of a split."""

import difflib
import re
from collections.abc import Iterable, Sequence

from fsq_jax.runtime.user_error import UserError

KINDS = ("scenes", "tfds", "folder", "wds", "parquet", "hf", "arrays", "tokens")

_PLACE = r"-?[0-9]{1,15}%?"
_CUT = rf"[A-Za-z]\w*(?:\[(?:{_PLACE})?:(?:{_PLACE})?\])?"
_SPLIT = re.compile(rf"([A-Za-z]\w*)(?:\[({_PLACE})?:({_PLACE})?\])?")
_WITH_CUTS = re.compile(rf"(?:(?P<head>.+):)?(?P<cuts>{_CUT}(?:\+{_CUT})*)")
_MAX_SPEC = 4096  # characters, as of a path
_ALIASES = {
    "validation": ("validation", "val", "test"),
    "val": ("val", "validation", "test"),
    "test": ("test", "validation", "val"),
}
SPLIT_NAMES = ("train", *_ALIASES)


def parse_spec(spec: str) -> tuple[str, str, list[str]]:
    """Kind, name or path, and cuts of a spec: "tfds:x:train[:9]" is "tfds", "x", ["train[:9]"]."""
    kind, _, rest = spec.partition(":")
    if len(spec) > _MAX_SPEC:
        raise UserError(f"A spec of data has {_MAX_SPEC} characters at most, not {len(spec)}.")
    if kind not in KINDS:
        raise UserError(f"Unknown data {spec!r}: a spec starts with {listed(kind, KINDS)}")
    match = _WITH_CUTS.fullmatch(rest)
    has_cuts = match and bool(match["head"]) == (kind != "scenes")
    if has_cuts and kind == "hf":  # NAME:CONFIG looks like NAME:SPLIT
        has_cuts = not match["cuts"].isidentifier() or match["cuts"] in SPLIT_NAMES
    place = (match["head"] or "") if has_cuts else rest
    if kind == "scenes" and place:
        raise UserError(f"{spec!r}: scenes takes splits only, such as scenes:train[:4000].")
    if kind != "scenes" and not place:
        name = "NAME" if kind in ("tfds", "hf") else "PATH"
        raise UserError(f"{spec!r} names no data set; write {kind}:{name}.")
    return kind, place, match["cuts"].split("+") if has_cuts else []


def parse_split(split: str) -> tuple[str, str, str]:
    """Name, start and stop of a split as they are written: "train[:10%]" is "train", "", "10%"."""
    match = _SPLIT.fullmatch(split)
    if not match:
        raise UserError(f"{split!r} is not a split; write train, train[:1000] or train[:10%].")
    return match[1], match[2] or "", match[3] or ""


def span(split: str, length: int, where: str, endless: bool = False) -> tuple[int, int]:
    """First record, and the one after the last, that the brackets of a split keep of `length`.

    Percentages are rounded to the nearest record. Raises UserError when nothing is kept, or more
    than there is, unless the data set is endless.
    """
    _, start, stop = parse_split(split)
    first, last = _position(start, 0, length), _position(stop, length, length)
    if not 0 <= first < last or (last > length and not endless):
        raise UserError(
            f"{split!r} keeps records {first} to {last} of {where}, which has {length}."
        )
    return first, last


def _position(text: str, default: int, length: int) -> int:
    if not text:
        return default
    number = round(length * int(text[:-1]) / 100) if text.endswith("%") else int(text)
    return number + length if text.startswith("-") else number


def listed(word: str, known: Iterable[str]) -> str:
    """The known words ("a, b."), and which one was meant where the word looks like one of them."""
    known = sorted(known)
    near = difflib.get_close_matches(word, known, n=1)
    shown = ", ".join(known) if len(known) <= 12 else f"{len(known)} names"
    return f"{shown}." + (f" Did you mean {near[0]!r}?" if near else "")


def resolve(split: str, known: Sequence[str], where: str) -> str:
    """The split of a data set that a name stands for: "validation" may be its "val" or "test"."""
    for name in _ALIASES.get(split, (split,)):
        if name in known:
            return name
    raise UserError(f"{where} has no split {split!r}; it has {listed(split, known)}")
