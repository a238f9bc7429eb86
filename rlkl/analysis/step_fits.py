"""Power laws over steps (arXiv 2010.14701): L(x) = L_inf + (x0 / x)^a, with a minus sign for a figure that rises.

x is the number of updates before the measurement. The paper fits losses over compute, data and model size; steps of
one run, a rising figure and the intervals are rlkl's. Shapes: N runs, P steps, D resamples, A exponents.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from rlkl.analysis.intervals import LEVEL, Estimate, estimate
from rlkl.errors import InputError

try:
    from scipy import stats
except ImportError as error:
    raise InputError(f"rlkl compare needs scipy ({error}): pip install 'rlkl[report]'") from error

FEWEST_STEPS = 4
"""A curve of three coefficients meets three points exactly, so they could not contradict it."""
FEWEST_RUNS = 5
"""With fewer runs the resamples differ too little to hold an interval of 95%."""
EXPONENTS = (0.05, 5.0)
"""Exponents between which the best one is searched; near the first the curve is a logarithm, which has no limit."""
_GRID = 200
_DRAWS = 2000
_AT_BOUND = 0.025
"""Share of resamples at a bound of the exponent from which on the exponent counts as not determined."""

Runs = Mapping[int, Sequence[tuple[float, float]]]
"""Pairs of x and figure, by seed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepFit:
    """The fit of an arm: to the mean of its runs, at the steps that all of them have."""

    runs: int
    first: float
    """The smallest x of the fit."""
    last: float
    """The largest x of the fit."""
    limit: Estimate
    """L_inf; its mean is that of the fit, not of the resamples."""
    exponent: Estimate
    """a."""
    scale: float
    """x0, in steps: the x at which the figure is one unit from its limit; 0 if the curve is a constant."""
    rises: bool
    r2: float
    """R² of the mean of the runs. It is low if they follow no power law, as a figure that rises and falls."""
    doubts: Sequence[str]
    """Reasons why limit or exponent cannot be told from the data; empty if they can."""
    coefficients: np.ndarray = field(repr=False, compare=False)
    """Limit, factor and exponent of the fit, ``[3]``."""
    draws: np.ndarray = field(repr=False, compare=False)
    """Limit, factor and exponent of each resample, ``[D, 3]``; no rows with fewer than `FEWEST_RUNS` runs."""

    def at(self, x: float) -> Estimate | None:
        """Return the fitted figure at ``x`` with its interval over runs; None beyond the data."""
        if not self.first <= x <= self.last:
            return None
        return _interval(float(_value(self.coefficients, x)), _value(self.draws, x), self.runs)


def fit_steps(runs: Runs) -> StepFit | None:
    """Estimate a power law with a constant from the mean of runs by least squares; None with too few common steps.

    The exponent is searched between `EXPONENTS`; limit and factor are then linear. Intervals resample whole runs,
    because the steps of a run depend on each other. They are percentiles, expanded for few runs (Hesterberg 2015).
    A step is left out unless every run has it and its x is above 0.
    """
    common = set.intersection(*({x for x, _ in points if x > 0} for points in runs.values())) if runs else set()
    if len(common) < FEWEST_STEPS:
        return None
    x_P = np.array(sorted(common), dtype=float)
    y_NP = np.array([[dict(points)[x] for x in x_P] for points in runs.values()], dtype=float)
    n, mean_P = len(y_NP), y_NP.mean(axis=0)
    best = _best_fits(x_P, mean_P[None])[0]
    draws = np.empty((0, 3))
    if n >= FEWEST_RUNS:
        counts_DN = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=_DRAWS)
        draws = _best_fits(x_P, counts_DN @ y_NP / n)
    limit, factor, exponent = (float(value) for value in best)
    rest, spread = float(np.sum((mean_P - _value(best, x_P)) ** 2)), float(np.sum((mean_P - mean_P.mean()) ** 2))
    return StepFit(
        runs=n,
        first=float(x_P[0]),
        last=float(x_P[-1]),
        limit=_interval(limit, draws[:, 0], n),
        exponent=_interval(exponent, draws[:, 2], n),
        scale=_scale(factor, exponent),
        rises=factor < 0,
        r2=1 - rest / spread if spread > 0 else 0.0,
        doubts=_doubts(x_P, y_NP, best, draws),
        coefficients=best,
        draws=draws,
    )


def _best_fits(x_P: np.ndarray, y_DP: np.ndarray) -> np.ndarray:
    """Return limit, factor and exponent ``[D, 3]`` of the least squares of each curve."""
    logs_A = np.linspace(math.log(EXPONENTS[0]), math.log(EXPONENTS[1]), _GRID)
    y_mean_D = y_DP.mean(axis=1)
    z_AP, norm_A = _shapes(x_P, logs_A)
    fitted_DA = ((y_DP - y_mean_D[:, None]) @ z_AP.T) ** 2 / norm_A  # the sum of squares that the curve explains
    best_D = fitted_DA.argmax(axis=1)
    inner_D = best_D.clip(1, _GRID - 2)
    rows = np.arange(len(y_DP))
    before, middle, after = (fitted_DA[rows, inner_D + shift] for shift in (-1, 0, 1))
    bend = before - 2 * middle + after
    vertex = np.where(bend < 0, (before - after) / (2 * np.where(bend < 0, bend, -1.0)), 0.0).clip(-1, 1)
    shift_D = np.where(best_D == inner_D, vertex, 0.0)  # the vertex of the parabola through three exponents
    found_D = logs_A[best_D] + shift_D * (logs_A[1] - logs_A[0])
    z_DP, norm_D = _shapes(x_P, found_D)
    factor_D = ((y_DP - y_mean_D[:, None]) * z_DP).sum(axis=1) / norm_D
    exponent_D = np.exp(found_D)
    mean_D = (x_P ** -exponent_D[:, None]).mean(axis=1)
    return np.stack([y_mean_D - factor_D * mean_D, factor_D, exponent_D], axis=1)


def _shapes(x_P: np.ndarray, logs_A: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return x^-a minus its mean, ``[A, P]``, and its sum of squares, ``[A]``."""
    power_AP = x_P ** -np.exp(logs_A)[:, None]
    z_AP = power_AP - power_AP.mean(axis=1, keepdims=True)
    return z_AP, (z_AP**2).sum(axis=1)


def _value(coefficients: np.ndarray, x: float | np.ndarray) -> np.ndarray:
    limit, factor, exponent = coefficients[..., 0], coefficients[..., 1], coefficients[..., 2]
    return limit + factor * np.asarray(x, dtype=float) ** -exponent


def _scale(factor: float, exponent: float) -> float:
    return 0.0 if factor == 0 else math.exp(min(math.log(abs(factor)) / exponent, 700.0))


def _interval(value: float, draws: np.ndarray, runs: int) -> Estimate:
    """Return a value with the expanded percentile interval of its resamples; no interval without resamples.

    A resample of N runs spreads less than N new runs do, by sqrt((N - 1) / N), and its tails are those of the normal
    distribution. So the percentiles are those at which a normal mean would have Student's interval.
    """
    if len(draws) == 0:
        return Estimate(n=runs, mean=value, sd=None, low=None, high=None)
    tail = float(stats.norm.cdf(-math.sqrt(runs / (runs - 1)) * stats.t.ppf((1 + LEVEL) / 2, runs - 1)))
    low, high = np.quantile(draws, [tail, 1 - tail])
    return Estimate(n=runs, mean=value, sd=float(np.std(draws, ddof=1)), low=float(low), high=float(high))


def _doubts(x_P: np.ndarray, y_NP: np.ndarray, best: np.ndarray, draws: np.ndarray) -> list[str]:
    n = len(y_NP)
    if n < FEWEST_RUNS:
        return [f"{n} of the {FEWEST_RUNS} runs that an interval needs: L_inf and a cannot be judged"]
    logs_P = np.log(x_P) - np.log(x_P).mean()
    slope = estimate(((y_NP - y_NP.mean(axis=1, keepdims=True)) @ logs_P / (logs_P @ logs_P)).tolist())
    if slope.low is None or slope.high is None or slope.low <= 0 <= slope.high:
        return ["flat: no trend over steps beyond the spread of the runs, so L_inf and a mean nothing"]
    found = []
    low, high = EXPONENTS
    at_low, at_high = np.mean(draws[:, 2] <= low * 1.001), np.mean(draws[:, 2] >= high * 0.999)
    if max(at_low, at_high) > _AT_BOUND:
        bound = f"{low:g}, a curve like a logarithm" if at_low > _AT_BOUND else f"{high:g}, a sudden change"
        found.append(f"a cannot be told from the data: resamples reach {bound}")
    if at_low > _AT_BOUND:
        return [*found, "L_inf cannot be told from the data: a logarithm has none"]
    limit = _interval(float(best[0]), draws[:, 0], n)
    moved = abs(float(_value(best, x_P[-1]) - _value(best, x_P[0])))
    if limit.low is None or limit.high is None or limit.high - limit.low > moved:
        found.append("L_inf cannot be told from the data: its interval is wider than the whole change in them")
    return found
