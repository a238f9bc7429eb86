"""Turn the return value of a reward function into a score or a failure, never into a number by accident."""

from __future__ import annotations

import math
import re
import traceback
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass
from itertools import islice
from typing import Any, Literal

NAME = re.compile(r"[\w.-]+")
"""The allowed names of rewards and components: they become part of a metric's key."""

LARGEST = 3.4028234663852886e38
"""The largest float32: rewards become one in the learner."""
_SHOWN_CHARACTERS = 500
_TRACEBACK_CHARACTERS = 8000


@dataclass(frozen=True, slots=True)
class Reward:
    """A score with parts, token rewards or tags: what a reward function may return instead of a number.

    The score is ``value`` plus the sum of ``token_values``. A ``value`` that is left out is the sum of ``components``,
    0 where there are only ``token_values``, and an abstention where there is nothing at all.
    """

    value: float | None = None
    components: Mapping[str, float | None] = field(default_factory=dict)
    """Named numbers, each with a curve of its own; they enter the score only where ``value`` is left out."""
    tags: Sequence[str] = ()
    """Words about the sample, kept in its record."""
    token_values: Sequence[float] | None = None
    """One number a completion token, end-of-sequence token included: what that very token earns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """A usable answer of a reward function about one sample."""

    value: float | None
    """The whole score, ``token_values`` included; None: it abstains."""
    components: Mapping[str, float] = field(default_factory=dict)
    tags: tuple[str, ...] = ()
    token_values: tuple[float, ...] = ()


FailureKind = Literal["raised", "returned", "timeout", "crashed", "memory"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """The reason if a reward function has no score for a sample."""

    kind: FailureKind
    what: str
    """Goes on from "reward 'x'": ``raised ValueError``."""
    detail: str = ""
    traceback: str = ""
    cause: BaseException | None = field(default=None, compare=False)
    """The exception itself, where the function ran in this process."""


Outcome = Score | Failure


def raised(error: BaseException) -> Failure:
    """Return the failure for an exception of the function, or of its return value."""
    text = "".join(traceback.format_exception(error))
    return Failure(
        kind="memory" if isinstance(error, MemoryError) else "raised",
        what=f"raised {type(error).__name__}",
        detail=str(error)[:_TRACEBACK_CHARACTERS],
        traceback=text[-_TRACEBACK_CHARACTERS:],
        cause=error,
    )


class Unusable(Exception):
    """A returned value is no reward. Never leaves this package."""

    def failure(self, value: Any) -> Failure:
        shown = repr(value)
        shown = shown if len(shown) <= _SHOWN_CHARACTERS else shown[:_SHOWN_CHARACTERS] + "..."
        return Failure(kind="returned", what=f"returned {shown} ({type(value).__name__})", detail=str(self))


def outcome_of(value: Any, tokens: int) -> Outcome:
    """Turn a function's return value for one sample into an outcome; ``tokens``: the completion's number of tokens.

    Whatever the value raises while it is read is the sample's failure.
    """
    try:
        try:
            return _score(value, tokens)
        except Unusable as problem:
            return problem.failure(value)
    except (Exception, SystemExit) as error:  # a value's own __float__, __iter__, __repr__, ...
        return raised(error)


def outcomes_of(values: Any, tokens: Sequence[int]) -> tuple[Outcome, ...] | Failure:
    """Read an answer about several samples; return a `Failure` if it is not a list of that length.

    An array, a tensor or a generator counts as a list.
    """
    rows = values.tolist() if hasattr(values, "tolist") else values
    if isinstance(rows, Iterator):
        rows = list(islice(rows, len(tokens) + 1))  # it may be endless
    if not isinstance(rows, Sequence) or isinstance(rows, str | bytes):
        return Unusable("expected a list with one reward for each sample").failure(values)
    if len(rows) != len(tokens):
        counts = f"expected a list with one reward for each of {len(tokens)} samples, got {len(rows)}"
        return Unusable(counts).failure(values)
    return tuple(outcome_of(row, count) for row, count in zip(rows, tokens, strict=True))


def _score(value: Any, tokens: int) -> Score:
    if value is None:
        return Score(value=None)
    if isinstance(value, Mapping):
        if not value:
            raise Unusable("an empty dict says nothing; return None to abstain")
        value = Reward(components=value)
    if not isinstance(value, Reward):
        return Score(value=_number(value, "a finite number, None, a dict of named numbers, or rlkl.Reward(...)"))
    components = _components(value.components)
    token_values = _token_values(value.token_values, tokens)
    own = None if value.value is None else _number(value.value, "value to be a finite number or None")
    if own is None and components:
        own = sum(components.values())
    if token_values:
        own = math.fsum([own or 0.0, *token_values])
    elif own is None and value.token_values is not None:
        own = 0.0  # a completion without tokens has nothing to earn them
    own = None if own is None else _number(own, "the sum of its parts to be a finite number")
    return Score(value=own, components=components, tags=_tags(value.tags), token_values=token_values)


def _components(components: Any) -> dict[str, float]:
    if not isinstance(components, Mapping):
        raise Unusable("expected components to be a dict of named numbers")
    for name in components:
        if not (isinstance(name, str) and NAME.fullmatch(name)):
            raise Unusable(f"{name!r} is no name for a component (letters, digits, '_', '-', '.')")
    return {
        name: _number(number, f"component '{name}' to be a finite number or None")
        for name, number in components.items()
        if number is not None
    }


def _tags(tags: Any) -> tuple[str, ...]:
    """Check tags. A single text is refused: it would become one tag a letter."""
    if not isinstance(tags, list | tuple) or not all(isinstance(tag, str) for tag in tags):
        raise Unusable(f"expected tags to be a list of texts, got {tags!r}")
    return tuple(str(tag) for tag in tags)


def _token_values(values: Any, tokens: int) -> tuple[float, ...]:
    if values is None:
        return ()
    rows = values.tolist() if hasattr(values, "tolist") else values
    if not isinstance(rows, list | tuple) or len(rows) != tokens:
        raise Unusable(f"expected token_values to be a list with one number for each of the {tokens} completion tokens")
    return tuple(_number(number, "every token value to be a finite number") for number in rows)


def _number(value: Any, expected: str) -> float:
    """Return the value as a float. Text is no number, even if it could be parsed."""
    hint = next((hint for is_such, hint in _HINTS if is_such(value)), "")
    refusal = Unusable(f"expected {expected}{hint and '; '}{hint}")
    if isinstance(value, str | bytes):
        raise refusal
    try:
        number = float(value.item() if _is_array(value) else value)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # RuntimeError: a tensor of several elements
        raise refusal from None
    if not math.isfinite(number):
        raise Unusable(f"expected {expected}")
    if abs(number) > LARGEST:
        raise Unusable(f"expected {expected}; this one is too large for float32 (at most {LARGEST:.4g})")
    return number


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape") and callable(getattr(value, "item", None))


_HINTS: tuple[tuple[Callable[[Any], bool], str], ...] = (
    (lambda value: isinstance(value, str | bytes), "a text is no number: convert it, for example with float(text)"),
    (lambda value: isinstance(value, Generator), "write 'return' instead of 'yield'"),
    (
        lambda value: isinstance(value, list | tuple),
        "a list is for functions that take 'completions' or 'group'. This function is called for one sample: return "
        "one number, or rlkl.Reward(number, components={...}) if there is more to keep",
    ),
    (_is_array, "reduce an array to one number, for example with .mean().item()"),
    (is_dataclass, "return dataclasses.asdict(...) for a dict of named numbers"),
    (callable, "it returned a function: the reward has to be what that function returns"),
)
"""Hints on values that users return by mistake; the first that fits counts."""
