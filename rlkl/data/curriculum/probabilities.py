"""Probabilities of draws, from estimates. Pure Python.

K arms: prompts, or buckets of prompts. Every function returns numbers that sum to 1, up to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence


def interest(pass_rate: float) -> float:
    """Return 4 p (1 - p): 1 for a prompt that passes half of the time, 0 for one that passes always or never."""
    return 4 * pass_rate * (1 - pass_rate)


def proportional(weights_K: Sequence[float]) -> list[float]:
    """Divide weights of at least 0 by their sum; equal probabilities if all are 0."""
    total = sum(weights_K)
    if total == 0:
        return [1 / len(weights_K)] * len(weights_K)
    return [weight / total for weight in weights_K]


def with_floor(probabilities_K: Sequence[float], floor: float) -> list[float]:
    """Mix in equal probabilities with weight ``floor``: none is then below floor / K."""
    return [floor / len(probabilities_K) + (1 - floor) * p for p in probabilities_K]


def inverse_gap_square(losses_K: Sequence[float], gain: float) -> list[float]:
    """Return SquareCB's probabilities: 1 / (K + gain * gap), the rest for the arm of least estimated loss.

    gap: the estimated loss minus the least one. The arm of least loss gets at least 1 / K (arXiv 2002.04926).
    """
    count, least = len(losses_K), min(losses_K)
    return _rest_to_the_best(losses_K, [1 / (count + gain * (loss - least)) for loss in losses_K])


def inverse_gap_kl(losses_K: Sequence[float], gain: float) -> list[float]:
    """Return FastCB's probabilities: m / (K m + gain * gap), the rest for the arm of least estimated loss m.

    gap: the estimated loss minus m. For losses in [0, 1]; the arm of least loss gets at least 1 / K. If m is 0, arms
    with a gap get 0, the limit of the formula; without gain all get 1 / K (arXiv 2107.02237).
    """
    if gain == 0:
        return [1 / len(losses_K)] * len(losses_K)
    count, least = len(losses_K), min(losses_K)
    return _rest_to_the_best(
        losses_K,
        [1 / count if loss == least else least / (count * least + gain * (loss - least)) for loss in losses_K],
    )


def _rest_to_the_best(losses_K: Sequence[float], probabilities_K: list[float]) -> list[float]:
    """Give the first arm of least loss what the others leave."""
    best = losses_K.index(min(losses_K))
    others = sum(p for arm, p in enumerate(probabilities_K) if arm != best)
    return [1 - others if arm == best else p for arm, p in enumerate(probabilities_K)]
