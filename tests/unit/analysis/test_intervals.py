"""Intervals and tests of few seeds, against simulations, scipy, and values worked out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats as untyped_stats

from rlkl.analysis.intervals import (
    Estimate,
    estimate,
    holm,
    paired,
    pairs_needed,
    permutation_p,
    power_of,
    power_of_pairs,
    probability_of_improvement,
    seeds_needed,
    sign_flip_p,
    smallest_exact_p,
    welch,
)

stats: Any = untyped_stats  # its stubs miss attributes of results
STUDIES = 500


@pytest.mark.parametrize("seeds", [3, 5, 8])
def test_intervals_cover_as_often_as_they_say(seeds: int) -> None:
    rng = np.random.default_rng(seeds)
    covered = 0
    for _ in range(STUDIES):
        found = estimate(rng.normal(0.5, 0.04, seeds).tolist())
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= 0.5 <= found.high
    assert 0.93 <= covered / STUDIES <= 0.97


def test_differences_cover_as_often_as_they_say() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(STUDIES):
        found = welch(rng.normal(0.6, 0.02, 5).tolist(), rng.normal(0.5, 0.06, 5).tolist())
        assert found is not None
        covered += found.low <= 0.1 <= found.high
    assert 0.93 <= covered / STUDIES <= 0.97


def test_one_seed_has_no_interval() -> None:
    assert estimate([0.4]) == Estimate(n=1, mean=0.4, sd=None, low=None, high=None)
    assert welch([0.4], [0.1, 0.2]) is None
    assert paired([0.4], [0.1]) is None


def test_differences_are_those_of_scipy() -> None:
    one, other = [0.61, 0.66, 0.63, 0.69], [0.5, 0.58, 0.41]
    found, theirs = welch(one, other), stats.ttest_ind(one, other, equal_var=False)
    assert found is not None
    assert found.p == pytest.approx(theirs.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(theirs.confidence_interval(0.95)))
    pairs, theirs = paired(one[:3], other), stats.ttest_rel(one[:3], other)
    assert pairs is not None
    assert pairs.p == pytest.approx(theirs.pvalue)
    assert (pairs.low, pairs.high) == pytest.approx(tuple(theirs.confidence_interval(0.95)))


def test_equal_runs_have_no_spread() -> None:
    found = welch([0.5, 0.5], [0.5, 0.5])
    assert found is not None
    assert (found.mean, found.low, found.high, found.p) == (0.0, 0.0, 0.0, 1.0)


def test_the_permutation_test_counts_every_split() -> None:
    assert permutation_p([4.0, 5.0, 6.0], [1.0, 2.0, 3.0]) == pytest.approx(2 / 20)
    assert permutation_p([1.0, 2.0], [1.0, 2.0]) == 1.0
    theirs = stats.permutation_test(
        ([0.61, 0.66, 0.5, 0.69], [0.5, 0.58, 0.41]),
        lambda x, y: abs(np.mean(x) - np.mean(y)),
        n_resamples=np.inf,
        alternative="greater",
    )
    assert permutation_p([0.61, 0.66, 0.5, 0.69], [0.5, 0.58, 0.41]) == pytest.approx(theirs.pvalue)


def test_many_runs_are_split_at_random_and_equally_at_each_call() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.normal(0.3, 1, 15).tolist(), rng.normal(0, 1, 15).tolist()
    found = permutation_p(one, other)
    assert found == permutation_p(one, other)
    assert found == pytest.approx(stats.ttest_ind(one, other).pvalue, abs=0.02)


def test_signs_of_pairs_are_counted() -> None:
    assert sign_flip_p([2.0, 3.0, 4.0], [1.0, 1.0, 1.0]) == pytest.approx(2 / 8)
    assert sign_flip_p([1.0, 1.0], [1.0, 1.0]) == 1.0


def test_holm_multiplies_the_smallest_p_most() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


def test_probability_of_improvement() -> None:
    assert probability_of_improvement([2.0, 3.0], [1.0, 2.0]) == pytest.approx(3.5 / 4)


def test_power_and_seeds_agree_with_a_simulation() -> None:
    needed = seeds_needed(0.1, (0.06, 0.06))
    assert needed is not None
    rng = np.random.default_rng(2)
    found = np.mean(
        stats.ttest_ind(rng.normal(0.1, 0.06, (4000, needed)), rng.normal(0, 0.06, (4000, needed)), axis=1).pvalue
        < 0.05
    )
    assert found + 0.02 >= 0.8
    assert power_of(0.1 / 0.06, needed - 1) < 0.8 <= power_of(0.1 / 0.06, needed)


def test_power_of_pairs_agrees_with_a_simulation() -> None:
    needed = pairs_needed(0.1, 0.06)
    assert needed is not None
    gaps = np.random.default_rng(3).normal(0.1, 0.06, (4000, needed))
    assert np.mean(stats.ttest_1samp(gaps, 0, axis=1).pvalue < 0.05) + 0.02 >= 0.8
    assert power_of_pairs(0.1 / 0.06, needed - 1) < 0.8 <= power_of_pairs(0.1 / 0.06, needed)


def test_large_and_tiny_gaps_need_few_and_many_seeds() -> None:
    assert seeds_needed(10.0, (0.01, 0.01)) == 2
    assert seeds_needed(0.5, (1.0, 1.0)) == 64
    assert seeds_needed(1e-4, (1.0, 1.0)) is None
    assert seeds_needed(0.0, (1.0, 1.0)) is None


def test_smallest_exact_p_of_few_seeds() -> None:
    assert smallest_exact_p(3, 3) == pytest.approx(0.1)
    assert smallest_exact_p(5, 5) == pytest.approx(2 / 252)
    assert permutation_p([3.0, 4.0, 5.0], [0.0, 1.0, 2.0]) == pytest.approx(smallest_exact_p(3, 3))


def test_unequal_numbers_of_runs_have_no_mirrored_split() -> None:
    assert smallest_exact_p(2, 5) == pytest.approx(1 / 21)
    assert permutation_p([6.0, 8.0], [0.0, 1.0, 2.0, 3.0, 4.0]) == pytest.approx(smallest_exact_p(2, 5))
