"""Gao's fits on planted data."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from rlkl.analysis.fits import curve, fit, fit_seed, spread_of

KLS = [0.25, 1.0, 2.25, 4.0, 6.25, 9.0, 16.0]


def planted(a: float, b: float, form: Any, *, seeds: int, noise: float, rng_seed: int = 0) -> Any:
    rng = np.random.default_rng(rng_seed)
    points = {}
    for seed in range(seeds):
        own = a + rng.normal(0, noise), b + rng.normal(0, noise / 3)
        points[seed] = [(kl, curve(math.sqrt(kl), *own, form) + rng.normal(0, noise / 10)) for kl in KLS]
    return points


@pytest.mark.parametrize("form", ["log", "linear"])
def test_planted_coefficients_are_recovered(form: Any) -> None:
    exact = fit(planted(0.5, 0.2, form, seeds=2, noise=0.0), form)
    assert exact is not None
    assert (exact.a.mean, exact.b.mean) == pytest.approx((0.5, 0.2))
    assert all(seed.r2 == pytest.approx(1.0) for seed in exact.seeds)
    noisy = fit(planted(0.5, 0.2, form, seeds=5, noise=0.03), form)
    assert noisy is not None
    for planted_value, found in ((0.5, noisy.a), (0.2, noisy.b)):
        assert found.low is not None
        assert found.high is not None
        assert found.low <= planted_value <= found.high


def test_intervals_of_the_coefficients_cover_as_often_as_they_say() -> None:
    covered = 0
    for study in range(500):
        found = fit(planted(0.5, 0.2, "log", seeds=4, noise=0.03, rng_seed=study), "log")
        assert found is not None
        assert found.a.low is not None
        assert found.a.high is not None
        covered += found.a.low <= 0.5 <= found.a.high
    assert 0.93 <= covered / 500 <= 0.97


def test_a_peak_within_the_data_is_found() -> None:
    found = fit(planted(0.5, 0.25, "log", seeds=5, noise=0.01), "log")
    assert found is not None
    assert found.peak_kl == pytest.approx(math.exp(0.5 / 0.25 - 1) ** 2, rel=0.1)
    assert found.gain(found.peak_kl or 0.0) > max(found.gain(kl) for kl in (1.0, 16.0))
    linear = fit(planted(0.5, 0.1, "linear", seeds=5, noise=0.01), "linear")
    assert linear is not None
    assert linear.peak_kl == pytest.approx(2.5**2, rel=0.1)


def test_no_peak_outside_the_data_in_flat_data_or_from_one_seed() -> None:
    outside = fit(planted(0.5, 0.1, "log", seeds=5, noise=0.01), "log")
    assert outside is not None
    assert outside.b.low is not None
    assert outside.b.low > 0
    assert outside.peak_kl is None
    rng = np.random.default_rng(3)
    flat = fit({seed: [(kl, rng.normal(0, 0.02)) for kl in KLS] for seed in range(5)}, "log")
    assert flat is not None
    assert flat.peak_kl is None
    single = fit(planted(0.5, 0.25, "log", seeds=1, noise=0.0), "log")
    assert single is not None
    assert (single.a.low, single.peak_kl) == (None, None)


def test_a_kl_of_zero_is_allowed_and_too_few_kls_are_not_fitted() -> None:
    found = fit_seed(1, [0.0, 1.0, 4.0, 9.0], [0.0, *(curve(d, 0.3, 0.1, "log") for d in (1.0, 2.0, 3.0))], "log")
    assert found is not None
    assert (found.a, found.b) == pytest.approx((0.3, 0.1))
    assert curve(0.0, 0.3, 0.1, "log") == 0.0
    assert fit_seed(1, [0.0, 1.0, 4.0], [0.0, 0.3, 0.4], "log") is None
    assert fit({1: [(1.0, 0.3)]}, "log") is None


def test_many_seeds_get_a_bootstrap_that_is_the_same_at_each_call() -> None:
    values = np.random.default_rng(0).normal(1.0, 0.1, 12).tolist()
    found = spread_of(values)
    assert found == spread_of(values)
    assert found.low is not None
    assert found.high is not None
    assert found.low < np.mean(values) < found.high
    assert found.high - found.low == pytest.approx(2 * 1.96 * np.std(values) / math.sqrt(12), rel=0.15)
