"""Files that anyone may have written: only plain ones are opened, and none is read without limit.

What a file says of itself is checked against its size before memory is allocated, and damage is
reported in one sentence with the file's name (`UserError`).
"""

import contextlib
import json
import os
import stat
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

from fsq_jax.runtime.user_error import UserError

MAX_JSON = 16 << 20  # bytes of a JSON file
_MAX_LINE = 1 << 20  # bytes of a line in a file of them
_MAX_DEPTH = 50  # of lists and objects inside each other
_MAX_VALUES = 2_000_000
_KINDS = {
    stat.S_ISDIR: "a folder",
    stat.S_ISFIFO: "a pipe",
    stat.S_ISSOCK: "a socket",
    stat.S_ISCHR: "a device",
    stat.S_ISBLK: "a device",
}
_WORDS = {
    str: "a text",
    int: "an integer",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "an object",
    type(None): "null",
}


def open_regular(path: str | os.PathLike) -> BinaryIO:
    """The file at a path, open for reading bytes.

    Raises:
      UserError: there is none, it can't be opened, or it is a pipe, a device or a folder, of which
        opening or reading might never end.
    """
    path = os.fspath(path)
    try:
        _require_regular(path, os.stat(path).st_mode)
        # Without waiting, should a pipe have taken its place since.
        file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    except FileNotFoundError:
        raise UserError(f"There is no file {path!r}.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be opened ({error.strerror}).") from None
    except UserError:
        raise
    except ValueError as error:  # a zero byte in the name
        raise UserError(f"{path!r} is no name of a file ({error}).") from None
    try:
        _require_regular(path, os.fstat(file.fileno()).st_mode)
    except BaseException:
        file.close()
        raise
    return file


def _require_regular(path: str, mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = next((word for test, word in _KINDS.items() if test(mode)), "no file")
        raise UserError(f"{path} is {kind}; expected a plain file.")


def size(file: BinaryIO) -> int:
    """The bytes of an open file."""
    return os.fstat(file.fileno()).st_size


def read_bytes(path: str | os.PathLike, limit: int) -> bytes:
    """All of a file, which has at most `limit` bytes; a UserError for a larger one."""
    with open_regular(path) as file:
        if size(file) > limit:
            raise UserError(f"{path} has {size(file)} bytes; expected {limit} at most.")
        with names_path(path):
            data = file.read(limit + 1)
    if len(data) > limit:
        raise UserError(f"{path} grows while it is read; expected {limit} bytes at most.")
    return data


@contextlib.contextmanager
def names_path(path: str | os.PathLike) -> Iterator[None]:
    """Adds a path to an error of the filesystem that has none: "No space left on device: 'x'"."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = os.fspath(path)
        raise


def read_json(path: str | os.PathLike, expected: Any = None, limit: int = MAX_JSON) -> Any:
    """The value in a JSON file.

    Args:
      path: the file.
      expected: what the value must be: a type; `[item]`, a list of such; `{...: value}`, an object
        of such; `{"name": value, "other?": value}`, an object with these names, of which one with
        a question mark may be absent, and any others; a tuple, any of those in it; None, anything.
      limit: bytes that the file may have.

    Raises:
      UserError: the file is missing, too large, too deeply nested, is not JSON, or holds
        something else; says what.
    """
    return parse_json(read_bytes(path, limit), os.fspath(path), expected)


def read_lines(path: str | os.PathLike, expected: Any = None) -> list[Any]:
    """The values in a file of JSON lines, each as `expected` (see `read_json`).

    A last line that was only half written is left out.

    Raises:
      UserError: a line is longer than a mebibyte, is not JSON or holds something else; says which.
    """
    values = []
    with open_regular(path) as file:
        while (text := file.readline(_MAX_LINE)).endswith(b"\n"):
            values.append(parse_json(text, f"{path}, line {len(values) + 1},", expected))
    if len(text) == _MAX_LINE:
        raise UserError(f"{path}, line {len(values) + 1}, is longer than {_MAX_LINE} bytes.")
    return values


def parse_json(text: bytes | str, where: str, expected: Any = None) -> Any:
    """The value in a JSON text that stands in the file `where`; see `read_json`."""
    try:
        text = text.decode("utf-8-sig") if isinstance(text, bytes) else text
        value = json.loads(text)
    except RecursionError:
        raise UserError(f"{where} is nested too deeply; expected {_MAX_DEPTH} levels.") from None
    except ValueError as error:
        raise UserError(f"{where} is not readable as JSON ({error}).") from None
    _check_size(value, where)
    check(value, expected, where)
    return value


def _check_size(value: Any, where: str) -> None:
    """Raises a UserError for too many values, too deep ones, and text that no file can hold."""
    level, count = [value], 0
    for _ in range(_MAX_DEPTH):
        count += len(level)
        texts = [v for v in level if isinstance(v, str)]
        texts += [key for v in level if isinstance(v, dict) for key in v]
        if not all(map(_is_text, texts)):
            raise UserError(f"{where} holds half of a surrogate pair, which is no text.")
        parents = [
            v.values() if isinstance(v, dict) else v for v in level if isinstance(v, (dict, list))
        ]
        level = [child for children in parents for child in children]
        if count > _MAX_VALUES:
            raise UserError(f"{where} holds more than {_MAX_VALUES} values.")
        if not level:
            return
    raise UserError(f"{where} is nested too deeply; expected {_MAX_DEPTH} levels.")


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check(value: Any, expected: Any, where: str, name: str = "") -> None:
    """Raises a UserError where a value isn't what `read_json` describes as `expected`."""
    if expected is None:
        return
    options = expected if isinstance(expected, tuple) else (expected,)
    option = next((option for option in options if _is_of(value, option)), None)
    if option is None:
        what = f"{where}: {name}" if name else where
        words = " or ".join(map(_word, options))
        raise UserError(f"{what} is {_word(type(value))}; expected {words}.")
    if isinstance(option, list):
        for number, item in enumerate(value):
            check(item, option[0], where, f"{name}[{number}]")
    elif isinstance(option, Mapping):
        _check_names(value, option, where, name)


def _check_names(value: Mapping, expected: Mapping, where: str, name: str) -> None:
    prefix = f"{name}." if name else ""
    if ... in expected:
        for key, item in value.items():
            check(item, expected[...], where, f"{prefix}{key[:80]}")
        return
    options = {key.removesuffix("?"): option for key, option in expected.items()}
    lacking = sorted(f"{prefix}{key}" for key in expected if key[-1] != "?" and key not in value)
    if lacking:
        raise UserError(f"{where} lacks {', '.join(lacking)}.")
    for key in options.keys() & value.keys():
        check(value[key], options[key], where, prefix + key)


def _is_of(value: Any, option: Any) -> bool:
    if isinstance(option, (list, Mapping)):
        return isinstance(value, dict if isinstance(option, Mapping) else list)
    if isinstance(value, bool):
        return option is bool
    return isinstance(value, (int, float) if option is float else option)


def _word(option: Any) -> str:
    kind = list if isinstance(option, list) else dict if isinstance(option, Mapping) else option
    return _WORDS[kind]
