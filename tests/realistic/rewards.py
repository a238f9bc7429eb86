"""Rewards in which random completions of one prompt differ."""

from collections.abc import Sequence


def odd(completion_ids: Sequence[int]) -> float:
    """Share of odd token ids."""
    return sum(token % 2 for token in completion_ids) / len(completion_ids)
