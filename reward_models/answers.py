"""Compare answers as texts and as numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Context, Decimal, InvalidOperation
from typing import Any

from reward_models.extraction import EXTRACTORS
from reward_models.settings import check_choice, check_column, check_flags, check_number, shorten, takes, text_of
from rlkl.errors import RewardError

_ARITHMETIC = Context(prec=50, traps=[])


@dataclass(kw_only=True, eq=False)
class ExactMatch:
    """Return 1 if the completion's answer is the expected text, or one of several; else 0.

    A row whose answer is None has nothing to compare, and the reward abstains.
    """

    answer_column: str = "answer"
    extract: str = "whole"
    """The part of the completion that is its answer: ``whole``, ``last_line``, ``last_number`` or ``boxed``."""
    ignore_case: bool = False
    ignore_space: bool = True
    """Runs of white space count as one space."""

    def __post_init__(self) -> None:
        check_column(self, "answer_column")
        check_choice(self, "extract", EXTRACTORS)
        check_flags(self, "ignore_case", "ignore_space")
        self.__signature__ = takes("completion", self.answer_column)

    def __call__(self, **arguments: Any) -> float | None:
        expected = _expected(self, self.answer_column, arguments[self.answer_column])
        if expected is None:
            return None
        answer = EXTRACTORS[self.extract](text_of(self, "completion", arguments["completion"]))
        if answer is None:
            return 0.0
        return float(self._plain(answer) in {self._plain(text) for text in expected})

    def _plain(self, text: str) -> str:
        text = " ".join(text.split()) if self.ignore_space else text.strip()
        return text.casefold() if self.ignore_case else text


@dataclass(kw_only=True, eq=False)
class NumericMatch:
    """Return 1 if the completion's number is the expected one within a tolerance; 0 if not, or if it has no number.

    Reads ``1,234.5``, ``-3e5``, ``3/4``, ``12%`` (0.12) and ``$5``. The difference may be the larger of
    ``absolute_tolerance`` and ``relative_tolerance`` times the expected number. A row whose answer is None abstains.
    """

    answer_column: str = "answer"
    extract: str = "last_number"
    """The part of the completion that is its answer: ``last_number``, ``whole``, ``last_line`` or ``boxed``."""
    absolute_tolerance: float = 0.0
    relative_tolerance: float = 1e-6

    def __post_init__(self) -> None:
        check_column(self, "answer_column")
        check_choice(self, "extract", EXTRACTORS)
        check_number(self, "absolute_tolerance", low=0)
        check_number(self, "relative_tolerance", low=0)
        self.__signature__ = takes("completion", self.answer_column)

    def __call__(self, **arguments: Any) -> float | None:
        expected = _expected(self, self.answer_column, arguments[self.answer_column])
        if expected is None:
            return None
        answer = EXTRACTORS[self.extract](text_of(self, "completion", arguments["completion"]))
        number = None if answer is None else as_number(answer)
        if number is None:
            return 0.0
        return float(any(self._is_near(number, self._expected_number(text)) for text in expected))

    def _expected_number(self, text: str) -> Decimal:
        number = as_number(text)
        if number is None:
            raise RewardError(
                f"NumericMatch: column '{self.answer_column}' of this row is {shorten(repr(text))}, which is no "
                "number; correct the data or use ExactMatch or MathAnswer"
            )
        return number

    def _is_near(self, number: Decimal, expected: Decimal) -> bool:
        relative = _ARITHMETIC.multiply(Decimal(self.relative_tolerance), abs(expected))
        return abs(_ARITHMETIC.subtract(number, expected)) <= max(Decimal(self.absolute_tolerance), relative)


def as_number(text: str) -> Decimal | None:
    """Parse a number, also a percentage or a fraction; None if it is not a number or not finite."""
    plain = text.strip().strip("$").replace(",", "").replace(" ", "").rstrip(".")
    percent = plain.endswith("%")
    above, slash, below = plain.removesuffix("%").partition("/")
    try:
        number = Decimal(above)
        if slash:
            number = _ARITHMETIC.divide(number, Decimal(below))
    except InvalidOperation:
        return None
    if percent:
        number = _ARITHMETIC.divide(number, Decimal(100))
    return number if number.is_finite() else None


def _expected(reward: object, column: str, value: Any) -> Sequence[str] | None:
    """Return the accepted texts; None if the row has no answer."""
    if value is None:
        return None
    values = list(value) if isinstance(value, list | tuple) else [value]
    if not values or not all(isinstance(item, str | int | float) and not isinstance(item, bool) for item in values):
        raise RewardError(
            f"{type(reward).__name__}: column '{column}' of this row is {shorten(repr(value))}; expected a text, "
            "a number, or a list of these"
        )
    return [str(item) for item in values]
