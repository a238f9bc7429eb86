"""Statistics of few seeds: intervals, tests, and the seeds that a gap needs. Pure functions of numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations, product

import numpy as np

from rlkl.errors import InputError

try:
    from scipy import stats
except ImportError as error:
    raise InputError(f"rlkl compare needs scipy ({error}): pip install 'rlkl[report]'") from error

LEVEL = 0.95
"""Coverage of every interval."""
ALPHA = 0.05
POWER = 0.8
MOST_SEEDS = 1024
"""Larger numbers of seeds are not searched for."""
MOST_SPLITS = 200_000
"""With more ways to split the values, the permutation test draws some at random."""
_DRAWS = 100_000
_SAME = 1e-12
"""Relative difference up to which two sums count as equal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A mean of independent runs, with Student's interval. One run has no spread, so no interval."""

    n: int
    mean: float
    sd: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """The difference of two means, its interval, and the p value of a t test."""

    mean: float
    low: float
    high: float
    p: float


def estimate(values: Sequence[float]) -> Estimate:
    """Return mean, standard deviation and t interval of at least one value."""
    n, mean = len(values), float(np.mean(values))
    if n < 2:
        return Estimate(n=n, mean=mean, sd=None, low=None, high=None)
    sd = float(np.std(values, ddof=1))
    half = float(stats.t.ppf((1 + LEVEL) / 2, n - 1)) * sd / math.sqrt(n)
    return Estimate(n=n, mean=mean, sd=sd, low=mean - half, high=mean + half)


def welch(values: Sequence[float], others: Sequence[float]) -> Difference | None:
    """Return the difference ``values`` minus ``others`` by Welch's t; None if either has fewer than two values."""
    if min(len(values), len(others)) < 2:
        return None
    mean = float(np.mean(values) - np.mean(others))
    parts = [float(np.var(one, ddof=1)) / len(one) for one in (values, others)]
    if sum(parts) == 0:
        return _without_spread(mean)
    degrees = sum(parts) ** 2 / sum(part**2 / (len(one) - 1) for part, one in zip(parts, (values, others), strict=True))
    return _by_t(mean, math.sqrt(sum(parts)), degrees)


def paired(values: Sequence[float], others: Sequence[float]) -> Difference | None:
    """Return the mean difference of pairs of one seed by Student's t; None with fewer than two pairs."""
    if len(values) != len(others):
        raise ValueError(f"{len(values)} values and {len(others)} are no pairs")
    if len(values) < 2:
        return None
    gaps = np.subtract(values, others)
    error = float(np.std(gaps, ddof=1)) / math.sqrt(len(gaps))
    return _without_spread(float(gaps.mean())) if error == 0 else _by_t(float(gaps.mean()), error, len(gaps) - 1)


def _by_t(mean: float, error: float, degrees: float) -> Difference:
    half = float(stats.t.ppf((1 + LEVEL) / 2, degrees)) * error
    p = 2 * float(stats.t.sf(abs(mean) / error, degrees))
    return Difference(mean=mean, low=mean - half, high=mean + half, p=p)


def _without_spread(mean: float) -> Difference:
    return Difference(mean=mean, low=mean, high=mean, p=1.0 if mean == 0 else 0.0)


def permutation_p(values: Sequence[float], others: Sequence[float]) -> float:
    """Return the share of all ways to split the values in two whose gap of means is at least as large as this one.

    It is exact up to `MOST_SPLITS` ways; else it is an estimate from random splits, the same at each call.
    """
    pool = np.array([*values, *others], dtype=float)
    n, total = len(values), len(pool)
    gap = _gaps(pool, np.arange(n)[None])[0]
    if math.comb(total, n) <= MOST_SPLITS:
        splits = np.array(list(combinations(range(total), n)))
        return float(np.mean(_gaps(pool, splits) >= gap - _SAME * max(1.0, gap)))
    generator = np.random.default_rng(0)
    splits = generator.permuted(np.tile(np.arange(total), (_DRAWS, 1)), axis=1)[:, :n]
    return float((1 + np.sum(_gaps(pool, splits) >= gap - _SAME * max(1.0, gap))) / (1 + _DRAWS))


def _gaps(pool: np.ndarray, splits: np.ndarray) -> np.ndarray:
    first = pool[splits].sum(axis=1)
    return np.abs(first / splits.shape[1] - (pool.sum() - first) / (len(pool) - splits.shape[1]))


def sign_flip_p(values: Sequence[float], others: Sequence[float]) -> float:
    """Return the share of all ways to flip the signs of the gaps whose mean gap is at least as large as this one.

    It is exact up to `MOST_SPLITS` ways; else it is an estimate from random signs, the same at each call.
    """
    gaps = np.subtract(values, others)
    if 2 ** len(gaps) <= MOST_SPLITS:
        signs, extra = np.array(list(product((-1, 1), repeat=len(gaps)))), 0
    else:
        signs, extra = np.random.default_rng(0).choice((-1, 1), size=(_DRAWS, len(gaps))), 1
    reached = np.abs(signs @ gaps) >= abs(gaps.sum()) * (1 - _SAME)
    return float((extra + reached.sum()) / (extra + len(signs)))


def holm(ps: Sequence[float]) -> list[float]:
    """Return the p values adjusted for their number by Holm's method, in the order given."""
    adjusted = [0.0] * len(ps)
    highest = 0.0
    for rank, index in enumerate(sorted(range(len(ps)), key=lambda number: ps[number])):
        highest = max(highest, min(1.0, (len(ps) - rank) * ps[index]))
        adjusted[index] = highest
    return adjusted


def probability_of_improvement(values: Sequence[float], others: Sequence[float]) -> float:
    """Return how often a run of the first is above a run of the second; equal runs count half."""
    first, second = np.asarray(values)[:, None], np.asarray(others)[None]
    return float(np.mean((first > second) + 0.5 * (first == second)))


def seeds_needed(gap: float, sds: tuple[float, float], *, power: float = POWER) -> int | None:
    """Return the seeds of each arm with which a t test finds such a gap with probability ``power``.

    ``sds``: the standard deviations of both arms. None if more than `MOST_SEEDS` are needed, or the gap is 0.
    """
    return _needed(gap, math.sqrt((sds[0] ** 2 + sds[1] ** 2) / 2), power_of, power)


def pairs_needed(gap: float, sd: float, *, power: float = POWER) -> int | None:
    """Return the pairs with which a paired t test finds such a mean gap with probability ``power``.

    ``sd``: the standard deviation of the gaps. None if more than `MOST_SEEDS` are needed, or the gap is 0.
    """
    return _needed(gap, sd, power_of_pairs, power)


def _needed(gap: float, spread: float, power_at: Callable[[float, int], float], power: float) -> int | None:
    if gap == 0 or spread == 0:
        return None if gap == 0 else 2
    high = 2
    while power_at(gap / spread, high) < power:
        high *= 2
        if high > MOST_SEEDS:
            return None
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power_at(gap / spread, middle) >= power else (middle, high)
    return high


def power_of(effect: float, n: int) -> float:
    """Return the power of a two-sided t test of two arms of ``n`` runs; ``effect``: the gap in standard deviations."""
    return _power(abs(effect) * math.sqrt(n / 2), 2 * (n - 1))


def power_of_pairs(effect: float, n: int) -> float:
    """Return the power of a two-sided t test of ``n`` pairs; ``effect``: the gap in standard deviations of the gaps."""
    return _power(abs(effect) * math.sqrt(n), n - 1)


def _power(shift: float, degrees: int) -> float:
    if degrees < 1:
        return 0.0
    limit = float(stats.t.ppf(1 - ALPHA / 2, degrees))
    return float(stats.nct.sf(limit, degrees, shift) + stats.nct.cdf(-limit, degrees, shift))


def smallest_exact_p(n: int, m: int) -> float:
    """Return the smallest p that the permutation test can give for so many runs of two arms.

    With equal numbers each split has a mirrored one with the same gap, so at least two splits count.
    """
    return min(1.0, (2 if n == m else 1) / math.comb(n + m, n))
