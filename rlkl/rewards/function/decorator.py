"""``@rlkl.reward``: a name and a weight for a reward function, written where the function is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, overload

Function = TypeVar("Function", bound=Callable[..., Any])

_ATTRIBUTE = "__rlkl_reward__"


@dataclass(frozen=True, slots=True, kw_only=True)
class Declaration:
    """The arguments of the decorator."""

    name: str | None = None
    weight: float = 1.0


@overload
def reward(function: Function, /) -> Function: ...


@overload
def reward(*, name: str | None = None, weight: float = 1.0) -> Callable[[Function], Function]: ...


def reward(
    function: Callable[..., Any] | None = None, /, *, name: str | None = None, weight: float = 1.0
) -> Callable[..., Any]:
    """Give a reward function the name of its curve and its weight in the sum; the recipe's own values win over both.

    The function itself is returned, so it can be called, tested and pickled as before. ::

        @rlkl.reward(name="brevity", weight=0.1)
        def short(completion: str) -> float:
            return -float(len(completion))
    """

    def declare(function: Callable[..., Any]) -> Callable[..., Any]:
        setattr(function, _ATTRIBUTE, Declaration(name=name, weight=weight))
        return function

    return declare if function is None else declare(function)


def declaration_of(function: Callable[..., Any]) -> Declaration:
    """Return the arguments of ``@rlkl.reward`` for the function; the defaults if it has no decorator."""
    return getattr(function, _ATTRIBUTE, Declaration())
