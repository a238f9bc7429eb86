"""Compare arms with a baseline: the difference, its tests, and a verdict in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rlkl.analysis.intervals import (
    ALPHA,
    MOST_SEEDS,
    Difference,
    estimate,
    holm,
    paired,
    pairs_needed,
    permutation_p,
    probability_of_improvement,
    seeds_needed,
    sign_flip_p,
    smallest_exact_p,
    welch,
)

SEEDS_FOR_PROBABILITY = 5
"""The probability of improvement is given from so many seeds of both arms on."""
Tables = Mapping[str, Mapping[int, float]]
"""The figure by seed, by arm."""
Samples = tuple[Sequence[float], Sequence[float]]
"""The figures of an arm and of its baseline."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Against:
    """One arm against its baseline."""

    name: str
    baseline: str
    difference: Difference
    adjusted_p: float
    """p of the t test after Holm's correction over all arms."""
    exact_p: float
    """p of the permutation test, or of the signs of pairs."""
    smallest_p: float
    """The smallest p that the exact test can give for so many seeds."""
    improvement: float | None
    """Probability that a run is above a run of the baseline; None with few seeds."""
    needed: int | None
    """Seeds of each arm, or pairs, with which such a gap would be found in four of five studies."""
    seeds: int
    verdict: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Design:
    """The way in which two arms are compared."""

    is_paired: bool
    """Compare runs of equal seeds as pairs."""
    is_score: bool
    """Whether more of the figure is better."""

    def samples(self, values: Mapping[int, float], others: Mapping[int, float]) -> Samples:
        """Return the figures of both; if paired, those of the seeds that both have, in one order."""
        if not self.is_paired:
            return list(values.values()), list(others.values())
        shared = [seed for seed in values if seed in others]
        return [values[seed] for seed in shared], [others[seed] for seed in shared]

    def difference(self, samples: Samples) -> Difference | None:
        """Return the difference by the t test; None with fewer than two figures of each."""
        return paired(*samples) if self.is_paired else welch(*samples)

    def exact(self, samples: Samples) -> tuple[float, float]:
        """Return p of the exact test, and the smallest p that it can give."""
        n, m = len(samples[0]), len(samples[1])
        if self.is_paired:
            return sign_flip_p(*samples), 2 / 2**n
        return permutation_p(*samples), smallest_exact_p(n, m)

    def needed(self, gap: float, samples: Samples) -> int | None:
        """Return the seeds of each arm, or the pairs, that find such a gap in four of five studies."""
        if self.is_paired:
            return pairs_needed(gap, float(np.std(np.subtract(*samples), ddof=1)))
        first, second = (estimate(one).sd or 0.0 for one in samples)
        return seeds_needed(gap, (first, second))

    def direction(self, gap: float) -> str:
        """Return the word for a gap above or below 0."""
        if self.is_score:
            return "better" if gap > 0 else "worse"
        return "higher" if gap > 0 else "lower"


def against_all(tables: Tables, references: Mapping[str, str], design: Design) -> tuple[list[Against], dict[str, str]]:
    """Compare arms with their baselines; return the comparisons, and by arm the reason why there is none.

    ``references``: the baseline by arm.
    """
    found: list[tuple[str, Samples, Difference]] = []
    uncompared: dict[str, str] = {}
    for name, base in references.items():
        samples = design.samples(tables[name], tables[base])
        difference = design.difference(samples)
        if difference is None:
            uncompared[name] = _reason(name, base, (tables[name], tables[base]))
        else:
            found.append((name, samples, difference))
    adjusted = holm([difference.p for _, _, difference in found])
    return [
        _against((name, references[name]), samples, (difference, p), design)
        for (name, samples, difference), p in zip(found, adjusted, strict=True)
    ], uncompared


def _reason(name: str, base: str, values: tuple[Mapping[int, float], Mapping[int, float]]) -> str:
    """Write why there is no test."""
    for one, of_one in zip((name, base), values, strict=True):
        if not of_one:
            return f"{one} has no finished run with this figure"
    if min(map(len, values)) > 1:
        return "the arms share fewer than two seeds"
    return "one seed has no spread"


def _against(names: tuple[str, str], samples: Samples, tested: tuple[Difference, float], design: Design) -> Against:
    difference, adjusted = tested
    exact, smallest = design.exact(samples)
    seeds = min(map(len, samples))
    needed = design.needed(difference.mean, samples)
    return Against(
        name=names[0],
        baseline=names[1],
        difference=difference,
        adjusted_p=adjusted,
        exact_p=exact,
        smallest_p=smallest,
        improvement=probability_of_improvement(*samples) if seeds >= SEEDS_FOR_PROBABILITY else None,
        needed=needed,
        seeds=seeds,
        verdict=_shown(design.direction(difference.mean), (exact, smallest), samples)
        if adjusted < ALPHA
        else _not_shown(difference, needed, samples),
    )


def _shown(word: str, exact: tuple[float, float], samples: Samples) -> str:
    """Write the verdict on a gap that the t test shows; ``exact``: p of the exact test, and its smallest p."""
    p, smallest = exact
    if p < ALPHA:
        return word
    limit = f", and it cannot go below {smallest:.2g} with {_seeds(samples)}" if smallest >= ALPHA else ""
    return f"{word} by the t test; the exact test gives p = {p:.2g}{limit}"


def _not_shown(difference: Difference, needed: int | None, samples: Samples) -> str:
    """Write the verdict on a gap that could be chance."""
    verdict = f"not distinguishable with {_seeds(samples)}"
    if difference.mean == 0:
        return f"{verdict}; the means are equal"
    if difference.p < ALPHA:
        verdict += " after Holm's correction for the number of arms"
    if needed is None:
        return f"{verdict}; a gap so small needs more than {MOST_SEEDS}"
    if needed > min(map(len, samples)):
        return f"{verdict}; 80% power for this gap needs about {needed}"
    return verdict


def _seeds(samples: Samples) -> str:
    n, m = map(len, samples)
    return f"{n} seeds" if n == m else f"{n} and {m} seeds"
