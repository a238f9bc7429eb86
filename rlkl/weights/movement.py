"""Measures how far a sampler followed its learner, on log-probs of the same sequences. Numbers in, numbers out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Scores = Sequence[tuple[float, ...]]
"""Log-probabilities (nats): a row a sequence, a number a token after the first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Movement:
    """The learner's movement over all tokens, and the sampler's beside it.

    With d the learner's movement and e the sampler's, ``share`` is <e, d> / <d, d>: about 1 for fresh weights, 0 for
    stale ones. Rounding of the learner is in <d, d> but not in <e, d>, so it lowers the share of fresh weights too.
    """

    size: float
    """Root mean square of the learner's movement (nats)."""
    gap: float
    """Root mean square of the difference between sampler and learner now (nats)."""
    share: float
    error: float
    """Standard error of ``share``, from what is left beside it. Blind where one token has most of the movement."""
    peak: float
    """Part of the movement's length that is in the token that moved most: 1 if only one moved."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounding:
    """Changes of a model's log-probs by rounding alone (nats): the largest, and the root mean square."""

    largest: float = 0.0
    mean: float = 0.0


def measure(*, sampler: tuple[Scores, Scores], learner: tuple[Scores, Scores]) -> Movement:
    """Compare the movements of sampler and learner, each given as log-probs before and after."""
    moved = [_rows(after, before) for before, after in (learner, sampler)]
    gaps = _rows(sampler[1], learner[1])
    total = sum(float(d @ d) for d in moved[0])
    tokens = sum(len(d) for d in moved[0])
    if total == 0:
        return Movement(size=0.0, gap=rms(sampler[1], learner[1]), share=1.0, error=0.0, peak=0.0)
    share = sum(float(e @ d) for d, e in zip(*moved, strict=True)) / total
    left = [e - share * d for d, e in zip(*moved, strict=True)]
    # Rounding errors of one sequence's tokens hang together, so a sequence may count as one draw or as its tokens.
    by_token = sum(float(r**2 @ d**2) for d, r in zip(moved[0], left, strict=True))
    by_sequence = sum(float(d @ r) ** 2 for d, r in zip(moved[0], left, strict=True))
    return Movement(
        size=(total / tokens) ** 0.5,
        gap=(sum(float(g @ g) for g in gaps) / tokens) ** 0.5,
        share=share,
        error=max(by_token, by_sequence) ** 0.5 / total,
        peak=max(float(np.abs(d).max(initial=0.0)) for d in moved[0]) / total**0.5,
    )


def rms(left: Scores, right: Scores) -> float:
    """Return the root mean square of the differences of two models' log-probs (nats); 0 without tokens."""
    gaps = flat(left) - flat(right)
    return float(np.sqrt(np.mean(gaps**2))) if gaps.size else 0.0


def largest_gap(left: Scores, right: Scores) -> float:
    """Return the largest difference of two models' log-probs (nats); 0 without tokens."""
    return float(np.abs(flat(left) - flat(right)).max(initial=0.0))


def rounding_between(plain: Scores, rounded: Scores) -> Rounding:
    """Measure what rounding did to log-probs of the same sequences."""
    return Rounding(largest=largest_gap(rounded, plain), mean=rms(rounded, plain))


def flat(scores: Scores) -> np.ndarray:
    """Return all numbers of all rows, one after the other."""
    return np.array([score for row in scores for score in row], dtype=np.float64)


def _rows(left: Scores, right: Scores) -> list[np.ndarray]:
    return [np.array(a) - np.array(b) for a, b in zip(left, right, strict=True)]
