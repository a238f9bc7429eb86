"""Gao's fits of reward over KL (arXiv 2210.10760): R = d (A - B log d) or R = d (A - B d), with d = sqrt(KL).

R is the gain over the untrained policy. Both are linear in A and B, so least squares has one solution.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from rlkl.analysis.intervals import LEVEL, Estimate, estimate

Form = Literal["log", "linear"]
"""``log`` for reinforcement learning, ``linear`` for best of n."""
BOOTSTRAP_FROM = 8
"""From so many seeds on the interval is a bootstrap over the fits of the seeds; with fewer it is Student's."""
_DRAWS = 4000


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedFit:
    """The fit of one seed's points."""

    seed: int
    a: float
    b: float
    r2: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GaoFit:
    """The fits of all seeds of an arm."""

    form: Form
    seeds: Sequence[SeedFit]
    a: Estimate
    b: Estimate
    lowest_kl: float
    highest_kl: float
    peak_kl: float | None
    """KL of the highest gain; None unless it is within the measured KL and the interval of B is above 0."""

    def gain(self, kl: float) -> float:
        """Return the gain at a KL by the mean fit."""
        return curve(math.sqrt(kl), self.a.mean, self.b.mean, self.form)


def curve(d: float, a: float, b: float, form: Form) -> float:
    """Return the gain at ``d``, the square root of the KL; 0 at 0."""
    if d == 0:
        return 0.0
    return d * (a - b * (math.log(d) if form == "log" else d))


def fit_seed(seed: int, kls: Sequence[float], gains: Sequence[float], form: Form) -> SeedFit | None:
    """Estimate A and B by least squares; None if fewer than three different KLs above 0 are given.

    A curve of two coefficients meets two points exactly, so they could not contradict it. A KL below 0 counts as 0.
    """
    d = np.sqrt(np.maximum(np.asarray(kls, dtype=float), 0.0))
    if len(set(d[d > 0].tolist())) < 3:
        return None
    bend = np.where(d > 0, d * np.log(np.where(d > 0, d, 1.0)), 0.0) if form == "log" else d * d
    design = np.stack([d, -bend], axis=1)
    y = np.asarray(gains, dtype=float)
    (a, b), *_ = np.linalg.lstsq(design, y, rcond=None)
    rest, spread = float(np.sum((y - design @ (a, b)) ** 2)), float(np.sum((y - y.mean()) ** 2))
    return SeedFit(seed=seed, a=float(a), b=float(b), r2=1 - rest / spread if spread > 0 else 0.0)


def fit(points: Mapping[int, Sequence[tuple[float, float]]], form: Form) -> GaoFit | None:
    """Estimate A and B from each seed's points ``(KL, gain)`` on its own; None if no seed has enough of them."""
    fits = [
        one
        for seed, of_seed in points.items()
        if (one := fit_seed(seed, [kl for kl, _ in of_seed], [gain for _, gain in of_seed], form)) is not None
    ]
    if not fits:
        return None
    a, b = spread_of([one.a for one in fits]), spread_of([one.b for one in fits])
    fitted = {one.seed for one in fits}
    kls = [max(kl, 0.0) for seed in fitted for kl, _ in points[seed]]
    return GaoFit(
        form=form,
        seeds=fits,
        a=a,
        b=b,
        lowest_kl=min(kls),
        highest_kl=max(kls),
        peak_kl=_peak(a, b, form, (min(kls), max(kls))),
    )


def spread_of(values: Sequence[float]) -> Estimate:
    """Return the mean of the fits of all seeds: with Student's interval, or from `BOOTSTRAP_FROM` on a bootstrap's."""
    found = estimate(values)
    if len(values) < BOOTSTRAP_FROM:
        return found
    draws = np.random.default_rng(0).choice(np.asarray(values), size=(_DRAWS, len(values))).mean(axis=1)
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(n=found.n, mean=found.mean, sd=found.sd, low=float(low), high=float(high))


def _peak(a: Estimate, b: Estimate, form: Form, measured: tuple[float, float]) -> float | None:
    if b.low is None or b.low <= 0:
        return None
    exponent = a.mean / b.mean - 1
    if form == "log" and exponent > 50:  # far outside any KL
        return None
    d = math.exp(exponent) if form == "log" else a.mean / (2 * b.mean)
    return d * d if d > 0 and measured[0] <= d * d <= measured[1] else None
