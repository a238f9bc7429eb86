"""Choose the groups of samples that a page holds: all if they fit, else as many as the limits allow, spread evenly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Group:
    """Samples of one prompt: consecutive rows of a file."""

    start: int
    end: int
    tokens: int

    @property
    def size(self) -> int:
        """The number of samples."""
        return self.end - self.start


def choose_groups(files: Sequence[Sequence[Group]], *, samples: int, tokens: int) -> list[list[Group]]:
    """Return the groups of each file that a page holds, in their order.

    If the limits do not take all, each file gets the same number of samples, or all that it has, at equal distances.
    Groups that fit into the rest are added, at most one of each file before a second one.
    """
    low, high = 0, max((sum(group.size for group in groups) for groups in files), default=0)
    while low < high:
        share = (low + high + 1) // 2
        low, high = (share, high) if _fits(_shared(files, share), samples, tokens) else (low, share - 1)
    chosen = [set(groups) for groups in _shared(files, low)]
    samples -= sum(group.size for groups in chosen for group in groups)
    tokens -= sum(group.tokens for groups in chosen for group in groups)
    for _, number, group in sorted(_rest(files, chosen), key=lambda one: one[:2]):
        if group.size <= samples and group.tokens <= tokens:
            chosen[number].add(group)
            samples, tokens = samples - group.size, tokens - group.tokens
    return [[group for group in groups if group in of_file] for groups, of_file in zip(files, chosen, strict=True)]


def _shared(files: Sequence[Sequence[Group]], share: int) -> list[list[Group]]:
    """Return whole groups of each file at equal distances, together at most about ``share`` samples a file."""
    found = []
    for groups in files:
        total = sum(group.size for group in groups)
        wanted = len(groups) if share >= total else share * len(groups) // total
        found.append([groups[at * len(groups) // wanted] for at in range(wanted)])
    return found


def _fits(chosen: Sequence[Sequence[Group]], samples: int, tokens: int) -> bool:
    groups = [group for of_file in chosen for group in of_file]
    return sum(group.size for group in groups) <= samples and sum(group.tokens for group in groups) <= tokens


def _rest(files: Sequence[Sequence[Group]], chosen: Sequence[set[Group]]) -> list[tuple[tuple[int, float], int, Group]]:
    """Return the other groups with their file and rank: first one of each file, files far apart first."""
    return [
        ((rank, _spread(number)), number, group)
        for number, groups in enumerate(files)
        for rank, group in enumerate(group for group in groups if group not in chosen[number])
    ]


def _spread(number: int) -> float:
    """Return van der Corput's point of a number: neighbours are far apart."""
    point, half = 0.0, 0.5
    while number:
        number, bit = divmod(number, 2)
        point, half = point + bit * half, half / 2
    return point
