"""A reward's hash: it changes with whatever makes the scores, and with nothing else."""

from __future__ import annotations

import enum
import functools
import re
import subprocess
import sys
import threading
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlkl.rewards import load_rewards


def fingerprint(function: Callable[..., Any]) -> str:
    return next(iter(load_rewards([], [function]).fingerprints.values()))


def scaled(completion: str, factor: float = 1.0, *, words: Any = ()) -> float:
    return factor * len(completion) + len(words)


def closing_over(value: Any) -> Callable[..., float]:
    def reward(completion: str) -> float:
        return float(len(value))

    return reward


def decorated(factor: float) -> Callable[..., Any]:
    def decorate(function: Callable[..., float]) -> Callable[..., float]:
        @functools.wraps(function)
        def wrapper(**arguments: Any) -> float:
            return factor * function(**arguments)

        return wrapper

    return decorate(scaled)


class Judge:
    penalty = 1.0

    def __init__(self, threshold: Any) -> None:
        self.threshold = threshold
        self.lock = threading.Lock()
        self.itself = self

    def __call__(self, completion: str) -> float:
        return self.penalty

    def method(self, completion: str) -> float:
        return 1.0


class Strict(Judge):
    penalty = 2.0


@dataclass
class Settings:
    bonus: float = 1.0
    words: list[str] = field(default_factory=list)


class Slotted:
    __slots__ = ("factor",)

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __call__(self, completion: str) -> float:
        return self.factor


class Own:
    def __init__(self, version: str, gathered: int) -> None:
        self.version, self.gathered = version, gathered

    def __call__(self, completion: str) -> float:
        return 1.0

    def fingerprint(self) -> str:
        return self.version


class Kind(enum.Enum):
    FIRST = 1
    SECOND = 2


def linear(value: float) -> torch.nn.Module:
    layer = torch.nn.Linear(2, 1)
    with torch.no_grad():
        layer.weight.fill_(value)
        layer.bias.zero_()
    return layer


def with_default(value: Any) -> Callable[..., float]:
    def reward(completion: str, value: Any = value) -> float:
        return float(len(value))

    return reward


MAKERS: dict[str, Callable[[int], Callable[..., Any]]] = {
    "partial keyword": lambda n: functools.partial(scaled, factor=n),
    "partial of a partial": lambda n: functools.partial(functools.partial(scaled, factor=n), words=()),
    "positional of a partial": lambda n: functools.partial(lambda value, completion: value, n),
    "default": lambda n: with_default("a" * n),
    "closure over a text": lambda n: closing_over("a" * n),
    "closure over a list": lambda n: closing_over(["a"] * n),
    "closure over a dict": lambda n: closing_over({"a": n, 1: None}),
    "closure over a set": lambda n: closing_over({"a", "b", f"c{n}"}),
    "closure over an array": lambda n: closing_over(np.arange(3) * n),
    "closure over a tensor": lambda n: closing_over(torch.tensor([1.0 * n])),
    "closure over a model": lambda n: closing_over(linear(n)),
    "closure over a function": lambda n: closing_over(closing_over(n)),
    "closure over an expression": lambda n: closing_over(re.compile("a" * n)),
    "closure over a path": lambda n: closing_over(Path(f"model_{n}")),
    "closure over an enum": lambda n: closing_over(list(Kind)[n - 1]),
    "closure over a dataclass": lambda n: closing_over(Settings(bonus=n)),
    "decorator": lambda n: decorated(n),
    "cached": lambda n: functools.lru_cache(closing_over("a" * n)),
    "instance attribute": lambda n: Judge({"least": [n]}),
    "attribute of an attribute": lambda n: Judge(Judge(n)),
    "class attribute": lambda n: (Judge, Strict)[n - 1](0.5),
    "slot": lambda n: Slotted(n),
    "bound method": lambda n: Judge(n).method,
    "fingerprint method": lambda n: Own(f"v{n}", 0),
}


@pytest.mark.parametrize("name", MAKERS)
def test_another_value_is_another_reward_and_an_equal_one_is_the_same(name: str):
    first, again, other = (fingerprint(MAKERS[name](n)) for n in (1, 1, 2))
    assert first == again
    assert first != other


def test_what_changes_while_a_reward_works_is_no_part_of_it():
    assert fingerprint(Own("v1", 0)) == fingerprint(Own("v1", 5))
    lock, other = threading.Lock(), threading.Lock()
    assert fingerprint(closing_over(lock)) == fingerprint(closing_over(other))


def module(text: str) -> types.ModuleType:
    made = types.ModuleType("made_here")
    exec(text, made.__dict__)
    return made


@pytest.mark.parametrize(
    ("before", "after", "same"),
    [
        ("B = 1\ndef f(): return B\n", "B = 2\ndef f(): return B\n", False),
        ("B = (1, 'a')\ndef f(): return B\n", "B = (1, 'b')\ndef f(): return B\n", False),
        ("def g(): return 1\ndef f(): return g()\n", "def g(): return 2\ndef f(): return g()\n", False),
        ("B = 1\ndef f(): return lambda: B\n", "B = 2\ndef f(): return lambda: B\n", False),
        ("class f:\n def h(self): return 1\n def __call__(self): return self.h()\nf = f()\n",) * 2 + (True,),
        (
            "class f:\n def h(self): return 1\n def __call__(self): return self.h()\nf = f()\n",
            "class f:\n def h(self): return 2\n def __call__(self): return self.h()\nf = f()\n",
            False,
        ),
        ("C = 1\ndef f(): return 1\n", "C = 2\ndef f(): return 1\n", True),  # not used
        ("seen = []\ndef f(): return len(seen)\n", "seen = [1]\ndef f(): return len(seen)\n", True),  # gathered
        ("def f(): return f\n",) * 2 + (True,),  # names itself
    ],
)
def test_constants_and_helpers_of_its_module_that_a_function_names(before: str, after: str, same: bool):
    """Made by `exec`, as a notebook does: there is no source to read."""
    assert (fingerprint(module(before).f) == fingerprint(module(after).f)) == same


def test_every_process_finds_the_same_hash():
    code = (
        "from tests.unit.rewards.function.test_fingerprint import MAKERS, fingerprint\n"
        "print(*[fingerprint(make(1)) for make in MAKERS.values()], sep='\\n')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=600)
    assert done.stdout.split() == [fingerprint(make(1)) for make in MAKERS.values()]
