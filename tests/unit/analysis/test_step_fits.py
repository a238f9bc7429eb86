"""Power laws over steps on planted runs."""

from __future__ import annotations

import numpy as np
import pytest

from rlkl.analysis.step_fits import EXPONENTS, Runs, StepFit, fit_steps

STUDIES = 120


def planted(
    limit: float, factor: float, exponent: float, *, runs: int = 8, steps: int = 60, noise: float = 0.0, seed: int = 0
) -> Runs:
    """Return runs of limit + factor x^-exponent; each has its own limit, and noise that lasts over steps."""
    rng = np.random.default_rng(seed)
    x = np.arange(1.0, steps + 1)
    found = {}
    for number in range(runs):
        own = rng.normal(0, noise, steps)
        for step in range(1, steps):
            own[step] += 0.5 * own[step - 1]
        y = limit + rng.normal(0, noise) + factor * x**-exponent + own
        found[number] = list(zip(x.tolist(), y.tolist(), strict=True))
    return found


def fitted(runs: Runs) -> StepFit:
    found = fit_steps(runs)
    assert found is not None
    return found


def covers(value: float, low: float | None, high: float | None) -> bool:
    assert low is not None
    assert high is not None
    return low <= value <= high


@pytest.mark.parametrize(
    ("limit", "factor", "exponent"), [(1.0, -0.8, 0.5), (0.3, 2.0, 1.0), (-2.0, 1.5, 0.2), (0, 9, 2)]
)
def test_planted_parameters_are_recovered(limit: float, factor: float, exponent: float) -> None:
    found = fitted(planted(limit, factor, exponent))
    assert found.limit.mean == pytest.approx(limit, abs=1e-3)
    assert found.exponent.mean == pytest.approx(exponent, rel=1e-3)
    assert found.scale == pytest.approx(abs(factor) ** (1 / exponent), rel=5e-3)
    assert (found.rises, found.runs, found.first, found.last) == (factor < 0, 8, 1, 60)
    assert found.r2 == pytest.approx(1.0)
    assert list(found.doubts) == []
    middle = found.at(25.0)
    assert middle is not None
    assert middle.mean == pytest.approx(limit + factor * 25**-exponent, abs=1e-3)


@pytest.mark.parametrize("runs", [5, 8])
def test_intervals_cover_nine_times_in_ten(runs: int) -> None:
    """In 600 other studies 90 to 94% with five runs, 94 to 95% with eight. So few studies differ by 3% by chance."""
    covered = np.zeros(3)
    for seed in range(STUDIES):
        found = fitted(planted(1.0, -1.0, 0.5, runs=runs, noise=0.03, seed=seed))
        middle = found.at(30.0)
        assert middle is not None
        covered += [
            covers(1.0, found.limit.low, found.limit.high),
            covers(0.5, found.exponent.low, found.exponent.high),
            covers(1 - 30**-0.5, middle.low, middle.high),
        ]
    assert np.all(covered / STUDIES >= 0.85), covered / STUDIES
    assert np.all(covered / STUDIES <= 0.99), covered / STUDIES


def test_nothing_is_extrapolated() -> None:
    found = fitted(planted(1.0, -1.0, 0.5, noise=0.02))
    assert found.at(60.0) is not None
    assert found.at(60.5) is None
    assert found.at(0.5) is None


def test_flat_runs_have_no_limit_to_read() -> None:
    flat = [fitted(planted(1.0, 0.0, 1.0, runs=5, noise=0.03, seed=seed)) for seed in range(40)]
    called_flat = sum(found.doubts[0].startswith("flat") for found in flat if found.doubts)
    assert called_flat >= 36
    constant = fitted({seed: [(x, 0.5) for x in range(1, 9)] for seed in range(5)})
    assert constant.limit.mean == 0.5
    assert (constant.scale, constant.r2) == (0.0, 0.0)
    assert constant.doubts[0].startswith("flat")


def test_a_limit_far_beyond_the_data_is_not_told_from_them() -> None:
    """In its first 60 steps x^-0.2 goes less than half of its way."""
    found = fitted(planted(1.0, -1.0, 0.2, runs=5, noise=0.05))
    assert any(doubt.startswith("L_inf cannot be told") for doubt in found.doubts)
    straight = {
        seed: [(x, np.log(x) + 0.01 * np.sin(9 * x + seed)) for x in range(1, 41)] for seed in range(6)
    }  # a logarithm has no limit
    doubts = fitted(straight).doubts
    assert any(doubt.startswith("a cannot be told from the data: resamples reach 0.05") for doubt in doubts)
    assert any(doubt.startswith("L_inf cannot be told") for doubt in doubts)


def test_a_sudden_change_has_no_exponent() -> None:
    runs = {seed: [(x, float(x == 1) + 0.01 * np.sin(9 * x + seed)) for x in range(1, 21)] for seed in range(6)}
    found = fitted(runs)
    assert found.exponent.mean == pytest.approx(EXPONENTS[1], rel=0.05)
    assert any(doubt.startswith("a cannot be told from the data: resamples reach 5") for doubt in found.doubts)
    assert not any(doubt.startswith("L_inf") for doubt in found.doubts)


def test_few_runs_have_a_fit_and_no_interval() -> None:
    found = fitted(planted(1.0, -1.0, 0.5, runs=4, noise=0.02))
    assert (found.limit.low, found.exponent.high) == (None, None)
    assert [doubt[:31] for doubt in found.doubts] == ["4 of the 5 runs that an interval"[:31]]
    middle = found.at(30)
    assert middle is not None
    assert (middle.low, middle.sd) == (None, None)


def test_too_few_common_steps_are_not_fitted() -> None:
    assert fit_steps({}) is None
    assert fit_steps({1: [], 2: [(1, 0.1)]}) is None
    assert fit_steps({1: [(x, 1 / x) for x in (1, 2, 3)]}) is None
    runs = {1: [(x, 0.1 * x) for x in range(6)], 2: [(x, 0.2 * x) for x in range(2, 9)]}
    assert fitted(runs).first == 2
    assert fitted(runs).last == 5
    assert fit_steps({**runs, 3: [(x, 1.0) for x in (0, 2, 3, 4)]}) is None, "0 does not count"


def test_the_same_runs_give_the_same_interval() -> None:
    runs = planted(1.0, -1.0, 0.5, noise=0.03)
    first, again = fitted(runs), fitted(dict(sorted(runs.items(), reverse=True)))
    assert fitted(runs) == first
    assert again.limit.mean == pytest.approx(first.limit.mean)
