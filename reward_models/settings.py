"""Parts that ready-made rewards share: checked settings, and arguments that settings name.

A ready-made reward is a dataclass: its fields are its settings, all by keyword. Its ``__call__`` takes keywords only,
and ``__signature__`` tells the runner which, because the names of columns are settings too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from inspect import Parameter, Signature
from pathlib import Path
from typing import Any

from rlkl.errors import RewardError, RewardInputError, did_you_mean

_SHOWN_CHARACTERS = 300


def takes(*names: str) -> Signature:
    """Return a signature of required keywords, each once, in the given order."""
    return Signature([Parameter(name, Parameter.KEYWORD_ONLY) for name in dict.fromkeys(names)])


def refuse(reward: object, setting: str, expected: str, hint: str = "") -> RewardInputError:
    """Return the error for an invalid setting; the caller raises it."""
    value = shorten(repr(getattr(reward, setting)))
    problem = f"{type(reward).__name__}: setting '{setting}' is {value}; expected {expected}"
    return RewardInputError(f"{problem}. {hint}" if hint else problem)


def check_number(
    reward: object,
    setting: str,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    whole: bool = False,
) -> None:
    """Check that a setting is a finite number with ``low <= number <= high`` and ``number > above``."""
    value = getattr(reward, setting)
    limits = [f"{sign} {limit}" for sign, limit in ((">=", low), ("<=", high), (">", above)) if limit is not None]
    expected = f"{'a whole number' if whole else 'a number'} {' and '.join(limits)}".rstrip()
    is_number = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    if not is_number or not abs(value) < float("inf"):
        raise refuse(reward, setting, expected)
    if (low is not None and value < low) or (high is not None and value > high):
        raise refuse(reward, setting, expected)
    if above is not None and value <= above:
        raise refuse(reward, setting, expected)


def check_optional_number(reward: object, setting: str, *, low: float | None = None, whole: bool = False) -> None:
    """Check a number that may be None."""
    if getattr(reward, setting) is not None:
        check_number(reward, setting, low=low, whole=whole)


def check_choice(reward: object, setting: str, choices: Iterable[str]) -> None:
    """Check that a setting is one of some words."""
    names = tuple(choices)
    value = getattr(reward, setting)
    if value not in names:
        raise refuse(reward, setting, "one of " + ", ".join(names), did_you_mean(str(value), names))


def check_flags(reward: object, *settings: str) -> None:
    """Check that settings are true or false."""
    for setting in settings:
        if not isinstance(getattr(reward, setting), bool):
            raise refuse(reward, setting, "true or false")


def check_text(reward: object, *settings: str) -> None:
    """Check that settings are texts with something in them."""
    for setting in settings:
        value = getattr(reward, setting)
        if not isinstance(value, str) or not value:
            raise refuse(reward, setting, "a text that is not empty")


def check_column(reward: object, *settings: str) -> None:
    """Check that settings could name columns, that is arguments."""
    for setting in settings:
        value = getattr(reward, setting)
        if not isinstance(value, str) or not value.isidentifier():
            raise refuse(reward, setting, "the name of a column (letters, digits, '_')")


def is_text_list(value: object) -> bool:
    """Return whether a value is a list (or tuple) of texts, none of them empty."""
    return isinstance(value, list | tuple) and all(isinstance(item, str) and item for item in value)


def text_of(reward: object, name: str, value: Any) -> str:
    """Return an argument that must be text; raise `RewardError` for another type."""
    if not isinstance(value, str):
        raise RewardError(
            f"{type(reward).__name__}: '{name}' of this row is {shorten(repr(value))} ({type(value).__name__}); "
            "expected text"
        )
    return value


def shorten(text: str, characters: int = _SHOWN_CHARACTERS) -> str:
    """Shorten a text for an error message."""
    return text if len(text) <= characters else text[:characters] + "..."


def fingerprint_of_files(path: Path) -> str:
    """Hash a file, or all files of a folder with their names; return an empty text if there is no file."""
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    digest = hashlib.blake2b(digest_size=16)
    for file in files:
        digest.update(str(file.relative_to(path)).encode())
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "blake2b").digest())
    return digest.hexdigest() if files else ""
