"""The frontier of a figure over the KL: values at one KL, and whether the KL weight moves it. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from rlkl.errors import InputError

try:
    from scipy import stats
except ImportError as error:
    raise InputError(f"rlkl compare needs scipy ({error}): pip install 'rlkl[report]'") from error

WINDOW = 5
"""Steps over which a trajectory is smoothed."""
LOW = 0.25
"""Runs are compared from this share of the largest common KL on; near KL 0 all runs are alike."""

Curve = Sequence[tuple[float, float]]
"""Pairs of KL and figure."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """KL and figure of a run over its steps."""

    raw: Curve = ()
    window: int = 1
    """Steps over which they are smoothed; 1 for evaluations."""
    start: float | None = None
    """The figure of the untrained policy, measured as those of ``raw`` are; None if the records begin later."""

    @property
    def trajectory(self) -> Curve:
        """The smoothed values."""
        return smoothed([kl for kl, _ in self.raw], [value for _, value in self.raw], self.window)


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontierTest:
    """An F test of the question: do runs that differ in a key reach different figures at the same KL?"""

    groups: Mapping[str, float]
    """Mean distance from the common curve, by value of the key."""
    low_kl: float
    high_kl: float
    """The KLs between which runs are compared; every run passes through them."""
    f: float
    degrees: tuple[int, int]
    p: float


def between_end_points(points: Curve, kl: float) -> float | None:
    """Return the figure at ``kl``, interpolated in sqrt(KL) between the two neighbouring points; None if not bracketed.

    The points are the ends of runs with different KL weights.
    """
    ordered = sorted((max(x, 0.0), y) for x, y in points)
    for (low, first), (high, second) in pairwise(ordered):
        if low <= kl <= high:
            return _between(low, first, high, second, kl)
    return next((y for x, y in ordered if x == kl), None)


def along_trajectory(trajectory: Curve, kl: float) -> float | None:
    """Return the figure where a run first passes ``kl``, interpolated in sqrt(KL); None if it never does.

    ``trajectory``: in the order of the steps, smoothed by `smoothed`.
    """
    for (before, first), (after, second) in pairwise(trajectory):
        if before <= kl <= after:
            return _between(before, first, after, second, kl)
    return None


def smoothed(kls: Sequence[float], values: Sequence[float], window: int) -> list[tuple[float, float]]:
    """Average sqrt(KL) and the figure over ``window`` steps, at each step from the ``window``-th on.

    The figure is nearly straight in sqrt(KL), so averaging KL instead of sqrt(KL) would bias fast runs downwards. A KL
    below 0 counts as 0.
    """
    if len(values) < window:
        return []
    kernel = np.ones(window) / window
    d = np.convolve(np.sqrt(np.maximum(np.asarray(kls, dtype=float), 0.0)), kernel, "valid")
    return list(
        zip((d * d).tolist(), np.convolve(np.asarray(values, dtype=float), kernel, "valid").tolist(), strict=True)
    )


def frontier_test(groups: Mapping[str, Sequence[Course]]) -> FrontierTest | None:
    """Judge by an F test whether a key, such as the KL weight, moves the frontier or only the point on it.

    Each run is one number: the mean distance of its figure from a curve common to all runs, over the steps in which it
    passes through KLs that every run passes through. The curve is a cubic in sqrt(KL) by least squares. A one-way F
    test compares these numbers by value of the key. The steps of a run depend on each other, so they are not counted as
    data; the runs are.

    ``groups``: the runs by value of the key. None with fewer than two values, without two runs of one value, or if the
    runs pass through no common KL.
    """
    courses = [course for of_group in groups.values() for course in of_group]
    if len(groups) < 2 or len(courses) <= len(groups) or any(not course.trajectory for course in courses):
        return None
    high = min(max(kl for kl, _ in course.trajectory) for course in courses)
    parts = [_within(course, LOW * high, high) for course in courses]
    if high <= 0 or not all(parts):
        return None
    d = [np.sqrt(np.maximum([kl for kl, _ in part], 0.0)) for part in parts]
    y = [np.asarray([value for _, value in part]) for part in parts]
    weights = np.concatenate([np.full(len(part), len(part) ** -0.5) for part in parts])  # each run counts once
    design = np.vander(np.concatenate(d), min(4, len(weights)))
    fitted, *_ = np.linalg.lstsq(design * weights[:, None], np.concatenate(y) * weights, rcond=None)
    gaps = [float(np.mean(one - np.polyval(fitted, x))) for one, x in zip(y, d, strict=True)]
    names = [name for name, of_group in groups.items() for _ in of_group]
    numbers = {name: [gap for gap, own in zip(gaps, names, strict=True) if own == name] for name in groups}
    f, p = _one_way(list(numbers.values()))
    return FrontierTest(
        groups={name: float(np.mean(values)) for name, values in numbers.items()},
        low_kl=LOW * high,
        high_kl=high,
        f=f,
        degrees=(len(groups) - 1, len(courses) - len(groups)),
        p=p,
    )


def _within(course: Course, low: float, high: float) -> Curve:
    """Return the steps from the one at which a run first passes ``low`` to the one before it passes ``high``."""
    kls = [kl for kl, _ in course.trajectory]
    start = next(number for number, kl in enumerate(kls) if kl >= low)
    end = next((number for number, kl in enumerate(kls) if kl > high), len(kls))
    middle = course.window // 2  # of the steps that a smoothed one averages
    return course.raw[start + middle : end + middle]


def _one_way(groups: Sequence[Sequence[float]]) -> tuple[float, float]:
    if all(len(set(group)) == 1 for group in groups):  # no spread within any group
        return (0.0, 1.0) if len({group[0] for group in groups}) == 1 else (math.inf, 0.0)
    found = stats.f_oneway(*groups)
    return float(found.statistic), float(found.pvalue)


def _between(low: float, first: float, high: float, second: float, kl: float) -> float:
    span = math.sqrt(high) - math.sqrt(low)
    share = (math.sqrt(kl) - math.sqrt(low)) / span if span > 0 else 0.5
    return first + share * (second - first)
