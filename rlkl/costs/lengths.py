"""Lengths of completions for `rlkl.costs.simulation`: drawn from a distribution, or as a run has recorded them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from random import Random
from typing import Protocol

from rlkl.errors import InputError

SPREAD = 0.7
"""Standard deviation of the logarithm of a length, if nothing was measured."""


class Lengths(Protocol):
    """Lengths of the completions of a group, in tokens, each at least 1."""

    def of_group(self, draw: int, samples: int, seed: int) -> Sequence[int]:
        """Return the lengths of a draw's completions. They depend on the draw and the seed alone, not on the order."""
        ...


def _chance(seed: int, draw: int) -> Random:
    return Random(seed * 1_000_003 + draw)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lognormal:
    """Long-tailed lengths, cut off at ``longest``; their mean after the cut is ``mean``."""

    mean: float
    longest: int
    spread: float = SPREAD
    """Standard deviation of the logarithm."""
    log_median: float = field(init=False)

    def __post_init__(self) -> None:
        if not 1 <= self.mean <= self.longest:
            raise InputError(f"a mean length of {self.mean:g} tokens: expected 1 to {self.longest}, the longest one")
        object.__setattr__(self, "log_median", self._log_median())

    def of_group(self, draw: int, samples: int, seed: int) -> Sequence[int]:
        return _lognormal(self, draw, samples, seed)

    def _log_median(self) -> float:
        """Find the logarithm of the median by bisection: the mean after the cut grows with it."""
        low, high = math.log(self.mean) - 10, math.log(self.longest) + 10
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if self._mean_after_cut(middle) < self.mean else (low, middle)
        return low

    def _mean_after_cut(self, log_median: float) -> float:
        if self.spread == 0:
            return min(math.exp(log_median), self.longest)
        cut = (math.log(self.longest) - log_median) / self.spread
        below = math.exp(log_median + self.spread**2 / 2) * _normal_below(cut - self.spread)
        return below + self.longest * (1 - _normal_below(cut))


@lru_cache(20_000)
def _lognormal(lengths: Lognormal, draw: int, samples: int, seed: int) -> tuple[int, ...]:
    """Draw lengths; a plan simulates the same draws several times."""
    chance = _chance(seed, draw)
    drawn = (chance.lognormvariate(lengths.log_median, lengths.spread) for _ in range(samples))
    return tuple(min(max(round(length), 1), lengths.longest) for length in drawn)


def _normal_below(value: float) -> float:
    """Return the probability that a standard normal number lies below ``value``."""
    return (1 + math.erf(value / math.sqrt(2))) / 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Uniform:
    """Lengths from ``shortest`` to ``longest``, both included, all equally likely."""

    shortest: int
    longest: int

    def of_group(self, draw: int, samples: int, seed: int) -> Sequence[int]:
        chance = _chance(seed, draw)
        return [chance.randint(self.shortest, self.longest) for _ in range(samples)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Empirical:
    """Lengths drawn with replacement from measured ones."""

    values: Sequence[int]
    longest: int

    def of_group(self, draw: int, samples: int, seed: int) -> Sequence[int]:
        chance = _chance(seed, draw)
        return [min(max(length, 1), self.longest) for length in chance.choices(self.values, k=samples)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """The groups of a run in the order in which they were drawn; after the last one, again from the first on."""

    groups: Sequence[Sequence[int]]

    def of_group(self, draw: int, samples: int, seed: int) -> Sequence[int]:
        group = self.groups[draw % len(self.groups)]
        return [max(group[sample % len(group)], 1) for sample in range(samples)]
