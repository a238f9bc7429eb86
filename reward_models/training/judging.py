"""Judge reward models by their scores alone. Pure Python.

A pair has the scores of its chosen and of its rejected answer, and the probability that the chosen one is the better:
1 where nothing else is known. The model's own probability is Bradley and Terry's, the logistic function of the
difference.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import StatisticsError, correlation, fmean, pstdev

BINS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredPair:
    """Scores of a pair's answers, and how sure it is that the chosen one is the better."""

    chosen: float
    rejected: float
    probability: float = 1.0

    @property
    def difference(self) -> float:
        return self.chosen - self.rejected

    @property
    def rightness(self) -> float:
        """The probability that the model ranks the pair rightly; half for equal scores."""
        if self.difference == 0:
            return 0.5
        return self.probability if self.difference > 0 else 1 - self.probability


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationBin:
    """The pairs of which the model is about equally sure. Empty bins have no means."""

    low: float
    high: float
    pairs: int
    confidence: float | None
    """Mean probability that the model gives to its own ranking."""
    accuracy: float | None
    """Share of those rankings that are right."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """The quality of a reward model on held-out pairs."""

    pairs: int
    accuracy: float
    log_loss: float
    """Mean of -log of the probability that the model gives to what is labelled; log 2 knows nothing."""
    calibration_error: float
    """Mean over the pairs of their bin's gap between confidence and accuracy (expected calibration error)."""
    calibration: tuple[CalibrationBin, ...]
    score_mean: float
    score_std: float
    """Over all answers, chosen and rejected (population)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """The agreement of two reward models on the same pairs. Correlations are None if one gives everything one score."""

    pairs: int
    ranked_alike: float
    """Share of pairs that both rank the same way."""
    pearson: float | None
    spearman: float | None
    """The rank correlation of the scores of all answers."""


def judge(pairs: Sequence[ScoredPair]) -> Judgement:
    """Compute everything in `Judgement`, of at least one pair."""
    bins = calibration(pairs)
    scores = [score for pair in pairs for score in (pair.chosen, pair.rejected)]
    gaps = [
        b.pairs * abs(b.confidence - b.accuracy) for b in bins if b.confidence is not None and b.accuracy is not None
    ]
    return Judgement(
        pairs=len(pairs),
        accuracy=fmean(pair.rightness for pair in pairs),
        log_loss=fmean(log_loss(pair) for pair in pairs),
        calibration_error=sum(gaps) / len(pairs),
        calibration=bins,
        score_mean=fmean(scores),
        score_std=pstdev(scores),
    )


def log_loss(pair: ScoredPair) -> float:
    """Compute Bradley and Terry's loss, with a soft label if the probability is below 1."""
    return pair.probability * softplus(-pair.difference) + (1 - pair.probability) * softplus(pair.difference)


def softplus(x: float) -> float:
    """Compute log(1 + exp(x)) without overflow."""
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def calibration(pairs: Sequence[ScoredPair], *, bins: int = BINS) -> tuple[CalibrationBin, ...]:
    """Sort pairs by the model's confidence in its ranking into ``bins`` equal bins from 0.5 to 1."""
    width = 0.5 / bins
    members: list[list[ScoredPair]] = [[] for _ in range(bins)]
    for pair in pairs:
        members[min(int((confidence(pair) - 0.5) / width), bins - 1)].append(pair)
    return tuple(
        CalibrationBin(
            low=round(0.5 + number * width, 6),
            high=round(0.5 + (number + 1) * width, 6),
            pairs=len(inside),
            confidence=fmean(map(confidence, inside)) if inside else None,
            accuracy=fmean(pair.rightness for pair in inside) if inside else None,
        )
        for number, inside in enumerate(members)
    )


def confidence(pair: ScoredPair) -> float:
    """Return the probability that the model gives to its own ranking, 0.5 to 1."""
    return math.exp(-softplus(-abs(pair.difference)))


def agreement(first: Sequence[ScoredPair], second: Sequence[ScoredPair]) -> Agreement:
    """Compare two models' scores of the same pairs, in the same order.

    Two ties agree; a tie and a ranking do not.
    """
    alike = [_sign(one.difference) == _sign(other.difference) for one, other in zip(first, second, strict=True)]
    scores = [[score for pair in pairs for score in (pair.chosen, pair.rejected)] for pairs in (first, second)]
    return Agreement(
        pairs=len(alike),
        ranked_alike=fmean(alike),
        pearson=_correlation(*scores),
        spearman=_correlation(*map(ranks, scores)),
    )


def ranks(values: Sequence[float]) -> list[float]:
    """Return the rank of each value from 1; equal values share the mean of their ranks.

    >>> ranks([30.0, 10.0, 20.0, 10.0])
    [4.0, 1.5, 3.0, 1.5]
    """
    order = sorted(values)
    first, count = {}, {}
    for place, value in enumerate(order, start=1):
        first.setdefault(value, place)
        count[value] = count.get(value, 0) + 1
    return [first[value] + (count[value] - 1) / 2 for value in values]


def _sign(x: float) -> int:
    return (x > 0) - (x < 0)


def _correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    try:
        return correlation(first, second)
    except StatisticsError:  # one of them is constant
        return None
