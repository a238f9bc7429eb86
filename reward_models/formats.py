"""Rewards for the form of a completion: its parts, its length, what a regular expression finds in it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from reward_models.extraction import all_boxed
from reward_models.settings import (
    check_choice,
    check_flags,
    check_number,
    check_optional_number,
    is_text_list,
    refuse,
    shorten,
    takes,
    text_of,
)
from rlkl.errors import RewardError, RewardInputError


@dataclass(kw_only=True, eq=False)
class FormatMatch:
    r"""1 where the completion has the wanted parts in the wanted order; else 0, or the share of parts that are right.

    With the defaults: one ``<think>...</think>`` that is not empty, nothing before it, and exactly one ``\boxed{...}``
    that is not empty after it, and none within it.
    """

    blocks: Sequence[str] = ("think",)
    """Tags of blocks, in order. Each comes once and holds something."""
    ending: str = "boxed"
    r"""The text after the last block: ``boxed`` (one ``\boxed{...}``), ``text`` (anything), or ``nothing``."""
    opened: str = ""
    """Text that the prompt already ends with, such as ``<think>``; it counts as the completion's beginning."""
    partial: bool = False
    """Whether right parts count by themselves."""

    def __post_init__(self) -> None:
        check_choice(self, "ending", ("boxed", "text", "nothing"))
        check_flags(self, "partial")
        if not is_text_list(self.blocks) or not all(re.fullmatch(r"[\w-]+", tag) for tag in self.blocks):
            raise refuse(self, "blocks", "a list of tags without brackets, such as [think, answer]")
        if len(set(self.blocks)) < len(self.blocks):
            raise refuse(self, "blocks", "tags that all differ")
        if not isinstance(self.opened, str):
            raise refuse(self, "opened", "text")
        self.__signature__ = takes("completion")

    def __call__(self, *, completion: str) -> float:
        rest = self.opened + text_of(self, "completion", completion)
        right: list[bool] = []
        for tag in self.blocks:
            opening, closing = f"<{tag}>", f"</{tag}>"
            body, found, after = rest.lstrip().removeprefix(opening).partition(closing)
            once = rest.count(opening) == 1 and rest.count(closing) == 1
            right.append(once and bool(found) and rest.lstrip().startswith(opening) and bool(body.strip()))
            rest = after if found else rest
        right.append(self._ends_right(rest, completion))
        return sum(right) / len(right) if self.partial else float(all(right))

    def _ends_right(self, rest: str, completion: str) -> bool:
        if self.ending == "nothing":
            return not rest.strip()
        if self.ending == "text":
            return bool(rest.strip())
        contents = all_boxed(rest)
        return len(contents) == 1 and len(all_boxed(completion)) == 1 and bool(contents[0].strip())


@dataclass(kw_only=True, eq=False)
class Length:
    """0 for a length that is wanted, falling to ``-penalty`` for one that is not.

    The excess is how far a length lies outside [``minimum``, ``limit``], or how far from ``target``. The reward is
    ``-penalty * min(1, excess / buffer)``; without a buffer any excess costs the whole penalty. With a limit and a
    buffer in tokens this is DAPO's soft overlong punishment (arXiv 2503.14476).
    """

    unit: str = "tokens"
    """``tokens`` (those sampled, the end of sequence included), ``words`` (between white space) or ``characters``."""
    target: int | None = None
    minimum: int | None = None
    limit: int | None = None
    buffer: int = 0
    penalty: float = 1.0

    def __post_init__(self) -> None:
        check_choice(self, "unit", ("tokens", "words", "characters"))
        for setting in ("target", "minimum", "limit"):
            check_optional_number(self, setting, low=0, whole=True)
        check_number(self, "buffer", low=0, whole=True)
        check_number(self, "penalty", above=0)
        if self.target is None and self.minimum is None and self.limit is None:
            raise RewardInputError("Length: nothing to hold to; set 'target', or 'minimum' and 'limit', or one of both")
        if self.target is not None and (self.minimum is not None or self.limit is not None):
            raise RewardInputError(
                "Length: set 'target', or 'minimum' and 'limit', not both; a target has no other bound"
            )
        if self.minimum is not None and self.limit is not None and self.minimum > self.limit:
            raise refuse(self, "minimum", f"at most the limit, {self.limit}")
        self.__signature__ = takes("completion_ids" if self.unit == "tokens" else "completion")

    def __call__(self, **arguments: Any) -> float:
        if self.unit == "tokens":
            length = len(arguments["completion_ids"])
        else:
            text = text_of(self, "completion", arguments["completion"])
            length = len(text.split()) if self.unit == "words" else len(text)
        low = self.target if self.target is not None else self.minimum
        high = self.target if self.target is not None else self.limit
        excess = max(0, (low or 0) - length, length - high if high is not None else 0)
        share = min(1.0, excess / self.buffer) if self.buffer else float(excess > 0)
        return -self.penalty * share if share else 0.0


_FLAGS = {"ignore_case": "i", "multiline": "m", "dot_all": "s"}


@dataclass(kw_only=True, eq=False)
class Regex:
    """Scores whether a regular expression (of the ``regex`` package, a superset of Python's) matches the completion.

    A search that takes longer than ``timeout_s`` is a `RewardError`: some expressions backtrack for ever on some texts.
    """

    pattern: str
    match: str = "search"
    """``search`` (anywhere), ``full`` (the whole completion) or ``count`` (how often)."""
    flags: Sequence[str] = ()
    """Any of ``ignore_case``, ``multiline``, ``dot_all``."""
    found: float = 1.0
    """The value of a match; with ``count`` of each of them."""
    missing: float = 0.0
    """The value without a match."""
    most: int | None = None
    """With ``count``: matches beyond this many are worth nothing."""
    timeout_s: float = 1.0

    def __post_init__(self) -> None:
        import regex

        check_choice(self, "match", ("search", "full", "count"))
        for setting in ("found", "missing"):
            check_number(self, setting)
        check_number(self, "timeout_s", above=0)
        check_optional_number(self, "most", low=1, whole=True)
        if self.most is not None and self.match != "count":
            raise refuse(self, "most", "nothing, because only 'match: count' counts")
        if not isinstance(self.flags, list | tuple) or not set(self.flags) <= set(_FLAGS):
            raise refuse(self, "flags", "a list of some of " + ", ".join(_FLAGS))
        try:
            regex.compile(self._expression())
        except (regex.error, TypeError) as error:
            raise refuse(self, "pattern", f"a regular expression ({error})") from error
        self.__signature__ = takes("completion")

    def __call__(self, *, completion: str) -> float:
        text = text_of(self, "completion", completion)
        try:
            count = self._count(text)
        except TimeoutError as error:
            raise RewardError(
                f"Regex: {self.pattern!r} took longer than {self.timeout_s} s on {shorten(repr(text))}; write it so "
                "that it backtracks less (possessive quantifiers such as '*+' do), or raise 'timeout_s'"
            ) from error
        if not count:
            return float(self.missing)
        return float(self.found * (min(count, self.most or count) if self.match == "count" else 1))

    def _count(self, text: str) -> int:
        import regex

        compiled = regex.compile(self._expression())  # which keeps what it compiled
        if self.match == "count":
            return sum(1 for _ in compiled.finditer(text, timeout=self.timeout_s))
        search = compiled.search if self.match == "search" else compiled.fullmatch
        return int(search(text, timeout=self.timeout_s) is not None)

    def _expression(self) -> str:
        letters = "".join(_FLAGS[flag] for flag in self.flags)
        return f"(?{letters}){self.pattern}" if letters else self.pattern
