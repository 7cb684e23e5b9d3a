"""Reads a pickle of plain values and of a few admitted names, in bounded time and memory.

A pickle is a program for a machine with a stack. Python's own machine calls whatever functions the
program names, hashes tuples that contain themselves 2**60 times over, and recurses as deeply as it
says. This one knows the instructions that containers of numbers and text need, calls nothing
but the functions it is given, and takes keys that are text or numbers alone.
"""

import pickletools
from collections.abc import Callable, Mapping
from typing import Any

MAX_OPCODES = 500_000  # a state dict has some forty for each tensor
_KEYS = (str, bytes, int, float, bool, type(None))
_LITERALS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_VALUES = frozenset(
    {  # that bring their value with them
        "INT",
        "BININT",
        "BININT1",
        "BININT2",
        "LONG",
        "LONG1",
        "LONG4",
        "FLOAT",
        "BINFLOAT",
        "STRING",
        "BINSTRING",
        "SHORT_BINSTRING",
        "UNICODE",
        "BINUNICODE",
        "SHORT_BINUNICODE",
        "BINUNICODE8",
        "BINBYTES",
        "SHORT_BINBYTES",
        "BINBYTES8",
    }
)
_NEW = {"EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "EMPTY_DICT": dict, "EMPTY_SET": set}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_PUTS = ("PUT", "BINPUT", "LONG_BINPUT")
_GETS = ("GET", "BINGET", "LONG_BINGET")
_NOTHING = ("PROTO", "FRAME", "STOP")
# What is raised for a pickle that is damaged: by pickletools, and by a stack with other things.
DAMAGE = (ValueError, IndexError, KeyError, TypeError, OverflowError, EOFError)


class Refused(Exception):
    """A pickle that asks for what is not read; the message is a sentence for the user."""


class Machine:
    """Runs one pickle, see `run`.

    Args:
      find: takes "module.name" to what the pickle gets for it: a function to be called with plain
        values, or any other object. Raises `Refused`.
      load: what a persistent id stands for; raises `Refused`.
    """

    def __init__(self, find: Callable[[str], Any], load: Callable[[Any], Any]):
        self._find, self._load = find, load
        self._stack, self._marks, self._memo = [], [], {}

    def run(self, file) -> Any:
        """The value of the pickle at a file's position, which is after it then.

        Raises:
          Refused: it asks for a name, an instruction or a key that is not read.
          ValueError, IndexError, KeyError, TypeError, ...: it is damaged, see `DAMAGE`.
        """
        for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
            if count >= MAX_OPCODES:
                raise Refused(f"it holds a pickle of more than {MAX_OPCODES} instructions.")
            self._step(opcode.name, argument)
        (value,) = self._stack
        return value

    def _step(self, name: str, argument: Any) -> None:
        stack = self._stack
        if name in _VALUES:
            stack.append(argument)
        elif name in _LITERALS:
            stack.append(_LITERALS[name])
        elif name in _NEW:
            stack.append(_NEW[name]())
        elif name in _PUTS:
            self._memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            self._memo[len(self._memo)] = stack[-1]
        elif name in _GETS:
            stack.append(self._memo[argument])
        elif name == "MARK":
            self._marks.append(len(stack))
        elif name in _TUPLES:
            stack.append(tuple(self._pop(_TUPLES[name])))
        elif name not in _NOTHING:
            handler = getattr(self, f"_do_{name.lower()}", None)
            if handler is None:
                raise Refused(f"it asks for {name}, which plain containers do not need.")
            handler(argument)

    def _pop(self, number: int) -> list:
        """Takes the last values off the stack."""
        if number > len(self._stack) - (self._marks[-1] if self._marks else 0):
            raise IndexError("stack is empty")
        start = len(self._stack) - number
        values, self._stack[start:] = self._stack[start:], []
        return values

    def _pop_mark(self) -> list:
        """Takes what is above the last mark off the stack, and the mark."""
        start = self._marks.pop()
        values, self._stack[start:] = self._stack[start:], []
        return values

    def _do_tuple(self, _) -> None:
        self._stack.append(tuple(self._pop_mark()))

    def _do_list(self, _) -> None:
        self._stack.append(self._pop_mark())

    def _do_dict(self, _) -> None:
        items = {}
        set_items(items, self._pop_mark())
        self._stack.append(items)

    def _do_frozenset(self, _) -> None:
        self._stack.append(frozenset(map(key, self._pop_mark())))

    def _do_setitem(self, _) -> None:
        items = self._pop(2)
        set_items(self._stack[-1], items)

    def _do_setitems(self, _) -> None:
        items = self._pop_mark()
        set_items(self._stack[-1], items)

    def _do_append(self, _) -> None:
        (item,) = self._pop(1)
        _of(self._stack[-1], list).append(item)

    def _do_appends(self, _) -> None:
        items = self._pop_mark()
        _of(self._stack[-1], list).extend(items)

    def _do_additems(self, _) -> None:
        items = self._pop_mark()
        _of(self._stack[-1], set).update(map(key, items))

    def _do_pop_mark(self, _) -> None:
        self._pop_mark()

    def _do_pop(self, _) -> None:
        if self._marks and self._marks[-1] == len(self._stack):
            self._marks.pop()
        else:
            self._pop(1)

    def _do_dup(self, _) -> None:
        self._stack.append(self._stack[-1])

    def _do_global(self, argument: str) -> None:
        self._stack.append(self._find(argument.replace(" ", ".")))  # "module name"

    def _do_stack_global(self, _) -> None:
        module, name = self._pop(2)
        self._stack.append(self._find(f"{_of(module, str)}.{_of(name, str)}"))

    def _do_reduce(self, _) -> None:
        function, arguments = self._pop(2)
        if not callable(function):
            raise TypeError("a call of what is no function")
        self._stack.append(function(*_of(arguments, tuple)))

    def _do_build(self, _) -> None:
        """An object's attributes, such as the versions of a state dict's layers: left out."""
        self._pop(1)
        _of(self._stack[-1], dict)

    def _do_binpersid(self, _) -> None:
        (pid,) = self._pop(1)
        self._stack.append(self._load(pid))


def key(value: Any) -> Any:
    """The same value, which can be a key; `Refused` for a tuple, whose hash may take for ever."""
    if type(value) not in _KEYS:
        raise Refused(f"it holds a dictionary with a {type(value).__name__} for a key.")
    return value


def set_items(items: Mapping, pairs: list) -> None:
    """Puts key, value, key, value, ... into a dictionary."""
    if len(pairs) % 2:
        raise ValueError("a key without a value")
    for name, value in zip(pairs[::2], pairs[1::2], strict=True):
        _of(items, dict)[key(name)] = value


def _of(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"a {type(value).__name__} in the place of a {kind.__name__}")
    return value
