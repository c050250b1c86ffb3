"""A pickle is a program; this is a machine for the few instructions that describe data, and for nothing else.

Python's own unpickler imports and calls what a file names. Here a name is looked up in a mapping that the caller gives;
what it finds is a `Global` of ours or a plain value: no import, no attribute, no method of anything is ever reached.
The machine has no recursion, its memory is bounded by LIMIT_BYTES and LIMIT_WORK, and its time too.

`pickletools.genops` takes the bytes apart into instructions; their meaning is in that module's docstrings.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

LIMIT_BYTES = 16 << 20
"""Of a program. Stable Diffusion 1.5, with 1,131 tensors, takes 0.2 MB."""
LIMIT_WORK = 1_000_000
"""Instructions, and entries copied by them. A tensor takes about forty."""
LIMIT_KEY = 1 << 31
"""Numbers as keys: smaller ones cannot be chosen to collide in a dict."""


class Refused(Exception):
    """The program is damaged, or asks for something that is not data."""


@dataclass(frozen=True)
class Global:
    """What a name in the file stands for, where the file may call it."""

    name: str
    make: Callable[..., Any]
    """Builds a plain value from plain values. Raises Refused if they are not what it takes."""


IGNORED = object()
"""Stands for a value that is nothing to us; whatever is done to it is nothing too."""
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_LITERALS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING"),  # text of Python 2
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
}
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class Machine:
    """Runs the programs of one file; what they may spend is for all of them together.

    `names` is what may be named, as "module.name"; `persistent` makes a value of a persistent id.
    """

    def __init__(self, names: Mapping[str, Any], persistent: Callable[[Any], Any]):
        self._names, self._persistent = names, persistent
        self._work = 0

    def run(self, program: Any) -> Any:
        """The value that the program at the stream's position describes; the stream (read, readline, tell) then stands
        behind it.

        Raises Refused.
        """
        self._stack: list[Any] = []
        self._marks: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        try:
            for opcode, argument, _ in pickletools.genops(program):
                self._spend(1)
                if opcode.name == "STOP":
                    return self._pop()
                self._step(opcode.name, argument)
        except (ValueError, OverflowError) as error:  # of genops: unknown instruction, cut off, no number, no text
            raise Refused(f"its pickle is damaged: {str(error)[:100]}") from error
        raise Refused("its pickle has no end")

    def _spend(self, amount: int) -> None:
        self._work += amount
        if self._work > LIMIT_WORK:
            raise Refused(f"its pickle has more than {LIMIT_WORK:,} instructions: no checkpoint needs that many")

    def _step(self, name: str, argument: Any) -> None:
        push = self._stack.append
        if name in _LITERALS:
            push(argument)
        elif name in _CONSTANTS:
            push(_CONSTANTS[name])
        elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
            self._memo[argument] = self._top()
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            if argument not in self._memo:
                raise Refused("its pickle is damaged: it refers to a value that is not there")
            push(self._memo[argument])
        elif name == "MEMOIZE":
            self._memo[len(self._memo)] = self._top()
        elif name in _TUPLES:
            push(tuple([self._pop() for _ in range(_TUPLES[name])][::-1]))
        elif name == "MARK":
            self._marks.append(self._stack)
            self._stack = []
        elif name == "TUPLE":
            self._after_mark(tuple)
        elif name == "EMPTY_LIST":
            push([])
        elif name == "LIST":
            self._after_mark(list)
        elif name in ("APPEND", "APPENDS"):
            items = [self._pop()] if name == "APPEND" else self._to_mark()
            self._top(list).extend(items)
        elif name == "EMPTY_DICT":
            push({})
        elif name == "DICT":
            self._after_mark(lambda items: _fill({}, items))
        elif name in ("SETITEM", "SETITEMS"):
            items = [self._pop(), self._pop()][::-1] if name == "SETITEM" else self._to_mark()
            _fill(self._top(dict), items)
        elif name == "GLOBAL":
            push(self._named(argument.replace(" ", ".", 1)))
        elif name == "STACK_GLOBAL":
            attribute, module = self._pop(), self._pop()
            push(self._named(f"{_text(module)}.{_text(attribute)}"))
        elif name == "REDUCE":
            arguments, function = self._pop(), self._pop()
            push(self._called(function, arguments))
        elif name == "BUILD":  # attributes of the OrderedDict that state_dict() gives: versions of layers
            self._pop()
            if self._top() is not IGNORED:
                self._top(dict)
        elif name == "BINPERSID":
            push(self._persistent(self._pop()))
        elif name == "POP":
            self._pop()
        elif name not in ("PROTO", "FRAME"):
            raise Refused(f"its pickle uses {name}, which no state dict needs")

    def _pop(self) -> Any:
        if not self._stack:
            raise Refused("its pickle is damaged: it takes a value that is not there")
        return self._stack.pop()

    def _top(self, kind: type = object) -> Any:
        if not self._stack or (kind is not object and type(self._stack[-1]) is not kind):
            raise Refused("its pickle is damaged, or made to harm: it changes a value that is no list or dict")
        return self._stack[-1]

    def _to_mark(self) -> list[Any]:
        if not self._marks:
            raise Refused("its pickle is damaged: it closes a group that was not opened")
        items, self._stack = self._stack, self._marks.pop()
        return items

    def _after_mark(self, make: Callable[[list[Any]], Any]) -> None:
        items = self._to_mark()
        self._stack.append(make(items))

    def _named(self, name: str) -> Any:
        if name not in self._names:
            raise Refused(f"it asks for {name[:100]!r}, which is not data: nothing was run")
        return self._names[name]

    def _called(self, function: Any, arguments: Any) -> Any:
        if not isinstance(function, Global) or type(arguments) is not tuple:
            raise Refused("its pickle calls something that is no function")
        self._spend(sum(len(a) for a in arguments if isinstance(a, list | tuple)))
        try:
            return function.make(*arguments)
        except TypeError as error:
            raise Refused(f"its pickle calls {function.name} with arguments that it does not take") from error


def ordered_dict(pairs: Any = ()) -> dict[Any, Any]:
    """collections.OrderedDict: empty, to be filled; or, as Python 2 wrote it, from a list of pairs."""
    if not isinstance(pairs, list | tuple) or not all(isinstance(p, list | tuple) and len(p) == 2 for p in pairs):
        raise Refused("its OrderedDict is not made of pairs")
    return _fill({}, [part for pair in pairs for part in pair])


def _fill(target: dict[Any, Any], items: list[Any]) -> dict[Any, Any]:
    if len(items) % 2:
        raise Refused("its pickle is damaged: a key without a value")
    for key, value in zip(items[::2], items[1::2], strict=True):
        if not (type(key) is str or (isinstance(key, int) and abs(key) < LIMIT_KEY)):
            raise Refused(f"a key in it is a {type(key).__name__}; names of tensors are text")
        target[key] = value
    return target


def _text(value: Any) -> str:
    if type(value) is not str:
        raise Refused("its pickle is damaged: a name that is no text")
    return value
