"""Describe, as text, all that the scores of a function from Python depend on: its code and the values in it.

Covered are the source of the function or class; defaults; values of a closure; arguments of a `functools.partial`;
attributes of an instance and its class; and the constants, functions and classes of its module that the code names.
Not covered: other modules, and what objects of other modules hold. Nothing that differs from process to process, such
as an address, becomes part of the text.
"""

from __future__ import annotations

import enum
import functools
import hashlib
import inspect
import json
import re
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import is_dataclass
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

_PLAIN = (type(None), bool, int, float, complex, str, bytes)
_SHOWN_MODULES = ("pathlib", "decimal", "fractions", "datetime", "uuid")
"""Objects of these modules count by their ``repr``."""
_MOST_ITEMS = 10_000
_MOST_DEPTH = 20
_ARRAY_ITEMS = 16_384
"""Only the first numbers of an array are hashed, with its shape. Training changes nearly all, so these suffice."""


def identity_of(function: Callable[..., Any]) -> str:
    """Return the description as JSON, equal in every process for the same function made in the same way."""
    return json.dumps(_Describer(function).of(function, root=True))


def described(function: Callable[..., Any]) -> Any:
    """Return the function behind a partial or a wrapper such as ``lru_cache``; the class of an instance."""
    if isinstance(function, functools.partial):
        return described(function.func)
    function = inspect.unwrap(function)
    return function if inspect.isroutine(function) else type(function)


class _Describer:
    """Turns values into JSON. A value that is met again inside itself is only numbered."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._home = described(function).__module__
        self._open: list[int] = []

    def of(self, value: Any, *, root: bool = False) -> Any:
        if type(value) in _PLAIN:
            return [type(value).__name__, repr(value)]
        if id(value) in self._open:
            return ["again", self._open.index(id(value))]
        if len(self._open) > _MOST_DEPTH:
            return [_kind(value)]
        self._open.append(id(value))
        try:
            return self._code(value) or self._data(value) or self._object(value, root)
        finally:
            self._open.pop()

    def _code(self, value: Any) -> list[Any] | None:
        """Describe functions, methods, partials, classes and modules; return None for all else."""
        if isinstance(value, functools.partial):
            return ["partial", self.of(value.func), self.of(value.args), self.of(value.keywords)]
        if isinstance(value, MethodType):
            return ["method", self.of(value.__func__), self.of(value.__self__)]
        if isinstance(value, FunctionType):
            return self._function(value)
        if isinstance(value, staticmethod | classmethod):
            return [_kind(value), self.of(value.__func__)]
        if isinstance(value, property):
            return ["property", self.of(value.fget)]
        if isinstance(value, type):
            return self._class(value)
        if isinstance(value, ModuleType):
            return ["module", value.__name__]
        if inspect.isroutine(value):
            wrapped = getattr(value, "__wrapped__", None)
            return ["routine", getattr(value, "__qualname__", "")] if wrapped is None else ["wrapper", self.of(wrapped)]
        return None

    def _function(self, function: FunctionType) -> list[Any]:
        return [
            "function",
            _text(function),
            self.of(function.__defaults__),
            self.of(function.__kwdefaults__),
            [self._cell(cell) for cell in function.__closure__ or ()],
            self._globals(function),
        ]

    def _cell(self, cell: Any) -> Any:
        try:
            return self.of(cell.cell_contents)
        except ValueError:  # not assigned yet
            return ["empty"]

    def _globals(self, function: FunctionType) -> dict[str, Any]:
        """Describe the constants, functions and classes of the function's own module that its code names."""
        if function.__module__ != self._home:
            return {}
        known = function.__globals__
        named = {name: known[name] for name in sorted(_names(function.__code__)) if name in known}
        return {name: self.of(value) for name, value in named.items() if self._counts(value)}

    def _counts(self, value: Any) -> bool:
        """Return whether a global is part of the code.

        Lists, dicts and instances are not: the function may gather in them.
        """
        if isinstance(value, FunctionType | type):
            return value.__module__ == self._home
        if isinstance(value, tuple | frozenset):
            return all(map(self._counts, value))
        return type(value) in _PLAIN or isinstance(value, re.Pattern | functools.partial)

    def _class(self, value: type) -> list[Any]:
        if value.__module__ != self._home:
            return ["class", f"{value.__module__}.{value.__qualname__}"]
        members = {
            name: self.of(member)
            for name, member in sorted(vars(value).items())
            if not (name.startswith("__") and name.endswith("__")) or isinstance(member, FunctionType)
        }
        return ["class", value.__qualname__, members, [self.of(base) for base in value.__bases__]]

    def _data(self, value: Any) -> list[Any] | None:
        """Describe containers, arrays and other values that are data; return None for all else."""
        if isinstance(value, enum.Enum):
            return [_kind(value), value.name]
        if isinstance(value, re.Pattern):
            return ["pattern", repr(value.pattern), value.flags]
        if isinstance(value, range | slice) or type(value).__module__.partition(".")[0] in _SHOWN_MODULES:
            return [_kind(value), repr(value)]
        if isinstance(value, Mapping):
            pairs = [[self.of(key), self.of(part)] for key, part in list(value.items())[:_MOST_ITEMS]]
            return [_kind(value), len(value), sorted(pairs, key=json.dumps)]
        if isinstance(value, AbstractSet):
            return [_kind(value), sorted(map(self.of, value), key=json.dumps)]
        if isinstance(value, list | tuple | deque | bytearray):
            return [_kind(value), len(value), [self.of(part) for part in list(value)[:_MOST_ITEMS]]]
        if hasattr(value, "shape") and hasattr(value, "dtype") and hasattr(value, "reshape"):
            return [_kind(value), str(value.dtype), list(map(int, value.shape)), _numbers(value)]
        return None

    def _object(self, value: Any, root: bool) -> list[Any]:
        """Describe an object by its ``fingerprint()``, weights or attributes.

        For one of another module return its class alone.
        """
        own = getattr(value, "fingerprint", None)
        if callable(own):
            return [_kind(value), self.of(type(value)), str(own())]
        if callable(weights := getattr(value, "state_dict", None)):
            return [_kind(value), self.of(weights())]
        if not root and type(value).__module__ != self._home and not is_dataclass(value):
            return [_kind(value)]
        slots = [name for kind in type(value).__mro__ for name in _slots(kind) if hasattr(value, name)]
        attributes = {name: getattr(value, name) for name in slots} | getattr(value, "__dict__", {})
        parts = {str(name): self.of(part) for name, part in sorted(attributes.items())}
        return [_kind(value), self.of(type(value)), parts]


def _kind(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _slots(kind: type) -> Sequence[str]:
    slots = vars(kind).get("__slots__", ())
    return (slots,) if isinstance(slots, str) else [name for name in slots if name not in ("__dict__", "__weakref__")]


def _text(function: FunctionType) -> str:
    """Return the source of a function, or its instructions if it has none (typed into a prompt, made by ``exec``)."""
    try:
        return inspect.getsource(function.__code__)  # not that of a function which this one wraps
    except (OSError, TypeError):
        return json.dumps(_instructions(function.__code__))


def _instructions(code: CodeType) -> list[Any]:
    constants = [_instructions(part) if isinstance(part, CodeType) else repr(part) for part in code.co_consts]
    return [code.co_code.hex(), constants, list(code.co_names), list(code.co_varnames)]


def _names(code: CodeType) -> set[str]:
    """Return all names that the code and the functions inside it read."""
    inner = [_names(part) for part in code.co_consts if isinstance(part, CodeType)]
    return set(code.co_names).union(*inner)


def _numbers(array: Any) -> str:
    """Hash the first numbers of a numpy array or a torch tensor."""
    head = array.reshape(-1)[:_ARRAY_ITEMS]
    if hasattr(head, "detach"):
        head = head.detach().cpu().double().numpy()
    return hashlib.blake2b(head.tobytes(), digest_size=16).hexdigest()
