"""Values at one KL, and the test of whether a key moves the frontier."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rlkl.analysis.fits import curve
from rlkl.analysis.frontier import Course, along_trajectory, between_end_points, frontier_test, smoothed

STEPS = 60


def test_between_two_end_points_the_root_of_the_kl_counts() -> None:
    points = [(9.0, 0.8), (1.0, 0.4)]
    assert between_end_points(points, 4.0) == pytest.approx(0.6)
    assert between_end_points(points, 1.0) == 0.4
    assert between_end_points(points, 9.0) == 0.8
    assert between_end_points(points, 0.5) is None
    assert between_end_points(points, 9.1) is None
    assert between_end_points([], 1.0) is None
    assert between_end_points([(2.0, 0.5), (2.0, 0.7)], 2.0) == pytest.approx(0.6)


def test_neighbours_bracket_a_kl() -> None:
    assert between_end_points([(1.0, 0.1), (4.0, 0.5), (9.0, 0.2)], 6.25) == pytest.approx(0.35)


def test_a_kl_below_zero_counts_as_zero() -> None:
    assert between_end_points([(-0.01, 0.2), (1.0, 0.4)], 0.25) == pytest.approx(0.3)


def test_a_run_is_read_where_it_first_passes_a_kl() -> None:
    course = [(0.0, 0.3), (1.0, 0.5), (4.0, 0.7), (1.0, 0.2), (9.0, 0.1)]
    assert along_trajectory(course, 2.25) == pytest.approx(0.6)
    assert along_trajectory(course, 10.0) is None
    assert along_trajectory([], 1.0) is None


def test_smoothing_averages_the_root_of_the_kl() -> None:
    assert smoothed([0.0, 4.0], [0.0, 1.0], 2) == [(1.0, 0.5)]
    assert smoothed([1.0], [0.5], 2) == []
    assert smoothed([1.0, 4.0], [0.5, 0.6], 1) == [(1.0, 0.5), (4.0, 0.6)]


def planted(rng: np.random.Generator, last: float, a: float) -> Course:
    """A run that follows Gao's curve to the KL ``last``: noise between runs and from step to step."""
    a += rng.normal(0, 0.01)
    d = np.sqrt(last) * np.linspace(0, 1, STEPS)
    raw = [(max(x * x + rng.normal(0, 0.05), -0.05), curve(x, a, 0.1, "log") + rng.normal(0, 0.02)) for x in d]
    return Course(raw=raw, window=5)


def studies(*, moves: float, number: int) -> list[float]:
    """The p values of studies with four KL weights and three runs each; runs of a small weight go further."""
    rng = np.random.default_rng(5)
    found = []
    for _ in range(number):
        groups = {
            f"kl_coef={weight}": [
                planted(rng, 2 / weight * math.exp(rng.normal(0, 0.1)), 0.3 + moves * n) for _ in range(3)
            ]
            for n, weight in enumerate((0.1, 0.2, 0.4, 0.8))
        }
        test = frontier_test(groups)
        assert test is not None
        assert test.degrees == (3, 8)
        found.append(test.p)
    return found


def test_a_frontier_that_does_not_move_is_rarely_said_to_move() -> None:
    assert 0.01 <= np.mean(np.array(studies(moves=0.0, number=100)) < 0.05) <= 0.1


def test_a_frontier_that_moves_is_found() -> None:
    assert np.mean(np.array(studies(moves=0.02, number=20)) < 0.05) > 0.9


def test_no_test_without_repeats_or_without_a_common_kl() -> None:
    rng = np.random.default_rng(0)
    run = planted(rng, 4.0, 0.3)
    assert frontier_test({"a": [run], "b": [run]}) is None
    assert frontier_test({"a": [run, run]}) is None
    assert frontier_test({"a": [run, run], "b": [run, Course()]}) is None
    still = Course(raw=[(0.0, 0.3)] * 10, window=5)
    assert frontier_test({"a": [run, run], "b": [still, still]}) is None


def test_runs_without_any_spread() -> None:
    flat = Course(raw=[(float(n), 0.5) for n in range(10)])
    test = frontier_test({"a": [flat, flat], "b": [flat, flat]})
    assert test is not None
    assert test.p > 0.05
