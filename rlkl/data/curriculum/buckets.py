"""Buckets of prompts: the values of a column, or equal parts of its numbers."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence

from rlkl.errors import DataError
from rlkl.recipe import DataSection
from rlkl.types import Prompt

MOST_BUCKETS = 32
"""The bandit tries all of them again and again, so that many buckets leave few draws for the good ones."""

PARTS = 8
"""Numbers of more values than this are cut into so many buckets."""


def check_buckets(section: DataSection, prompts: Sequence[Prompt]) -> None:
    """Raise `DataError` if the section names buckets, and the prompts do not make 2 to `MOST_BUCKETS` of them."""
    if section.curriculum is not None and section.curriculum.bucket_column is not None:
        buckets_of(section, prompts)


def buckets_of(section: DataSection, prompts: Sequence[Prompt]) -> list[list[int]]:
    """Return the numbers of the prompts of each bucket, in the order of the buckets' values.

    Each value is a bucket. Numbers of more than `PARTS` values are cut into `PARTS` buckets; each of them has about as
    many prompts as the others, and equal numbers share one.
    """
    assert section.curriculum is not None, "the recipe asks for buckets"
    assert section.curriculum.bucket_column is not None, "the recipe asks for buckets"
    column = section.curriculum.bucket_column
    values = [_value(prompt, column) for prompt in prompts]
    numbers = [_number(value) for value in values]
    keys: Sequence[float | str] = values
    if None not in numbers:
        known = [number for number in numbers if number is not None]
        keys = known if len(set(known)) <= PARTS else _parts(known)
    members: dict[float | str, list[int]] = {}
    for prompt, key in enumerate(keys):
        members.setdefault(key, []).append(prompt)
    if not 2 <= len(members) <= MOST_BUCKETS:
        raise DataError(
            f"data.curriculum.bucket_column = '{column}' makes {len(members)} bucket(s) of the {len(prompts)} prompts; "
            f"expected 2 to {MOST_BUCKETS}: take another column, or one of numbers, which is cut into {PARTS}"
        )
    return [members[key] for key in sorted(members, key=lambda key: (isinstance(key, str), key))]


def _parts(numbers: Sequence[float]) -> list[float]:
    """Return the part of each number, from 0."""
    ordered = sorted(numbers)
    return [float(bisect_left(ordered, number) * PARTS // len(ordered)) for number in numbers]


def _value(prompt: Prompt, column: str) -> str:
    value = prompt.columns.get(column)
    if value is None:
        raise DataError(
            f"data.curriculum.bucket_column = '{column}': the row of prompt '{prompt.id}' has no value; give every row "
            "one"
        )
    return str(value)


def _number(value: str) -> float | None:
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
