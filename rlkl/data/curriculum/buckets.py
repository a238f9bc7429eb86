"""Buckets of prompts: the values of a column, or equal parts of its range of values."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from rlkl.errors import DataError
from rlkl.recipe import DataSection
from rlkl.types import Prompt

MOST_BUCKETS = 32
"""The bandit tries all of them again and again, so that many buckets leave few draws for the good ones."""


def check_buckets(section: DataSection, prompts: Sequence[Prompt]) -> None:
    """Raise `DataError` if the section names buckets, and the prompts do not make 2 to `MOST_BUCKETS` of them."""
    if section.curriculum is not None and section.curriculum.bucket_column is not None:
        buckets_of(section, prompts)


def buckets_of(section: DataSection, prompts: Sequence[Prompt]) -> list[list[int]]:
    """Return the numbers of the prompts of each bucket, in the order of the buckets' values.

    With ``bins``, values are numbers, and each bin has about as many prompts as the others; equal values share a bin.
    """
    curriculum = section.curriculum
    assert curriculum is not None, "the recipe asks for buckets"
    assert curriculum.bucket_column is not None, "the recipe asks for buckets"
    column, bins = curriculum.bucket_column, curriculum.bins
    values = [_value(prompt, column) for prompt in prompts]
    members: dict[float | str, list[int]] = {}
    if bins is None:
        for number, value in enumerate(values):
            members.setdefault(value, []).append(number)
    else:
        numbers = [_number(value, prompt, column) for value, prompt in zip(values, prompts, strict=True)]
        ordered = sorted(numbers)
        for number, value in enumerate(numbers):
            members.setdefault(bisect_left(ordered, value) * bins // len(ordered), []).append(number)
    if not 2 <= len(members) <= MOST_BUCKETS:
        ways = "take fewer values, or cut numbers into equal parts with data.curriculum.bins" if bins is None else ""
        raise DataError(
            f"data.curriculum.bucket_column = '{column}' makes {len(members)} bucket(s) of the {len(prompts)} prompts; "
            f"expected 2 to {MOST_BUCKETS}: {ways or 'its numbers are too much alike; take another column'}"
        )
    return [members[value] for value in sorted(members, key=lambda value: (isinstance(value, str), value))]


def _value(prompt: Prompt, column: str) -> str:
    value = prompt.columns.get(column)
    if value is None:
        raise DataError(
            f"data.curriculum.bucket_column = '{column}': the row of prompt '{prompt.id}' has no value; give every row "
            "one"
        )
    return str(value)


def _number(value: str, prompt: Prompt, column: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = float("nan")
    if number != number:
        raise DataError(
            f"data.curriculum.bins needs numbers, and the column '{column}' of prompt '{prompt.id}' holds '{value}'; "
            "leave bins out to take each value as a bucket"
        )
    return number
