"""Compute the weights of distributionally robust training with a KL to equal weights.

Shapes: G groups, each with one loss L. The weights w solve

    max over w with mean 1 of  mean(w L) - r mean(w log w),   so  w = exp(L / r) / mean(exp(L / r)),

with the value r log mean(exp(L / r)), the soft maximum of the losses. r, the temperature, has the unit of L.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def soft_maximum(losses_G: Tensor, *, temperature: float) -> Tensor:
    """Return r log mean(exp(L / r)), a scalar: the mean as r grows, the largest loss as r falls to 0."""
    return temperature * (torch.logsumexp(losses_G / temperature, dim=0) - math.log(len(losses_G)))


def moving_soft_maximum(before: Tensor, now: Tensor, *, temperature: float, rate: float) -> Tensor:
    """Average exp(soft maximum / r) over steps: (1 - rate) of ``before`` and rate of ``now``; return r times its log.

    In logarithms, so that no loss is too large or too small. ``rate`` is in (0, 1].
    """
    kept = before / temperature + (math.log1p(-rate) if rate < 1 else -math.inf)
    return temperature * torch.logaddexp(kept, now / temperature + math.log(rate))


def kl_dro_weights(losses_G: Tensor, level: Tensor, *, temperature: float, max_weight: float) -> Tensor:
    """Return exp((L - level) / r), at most ``max_weight``, scaled to mean 1.

    ``level`` is a soft maximum. If nothing is cut, these are the exact weights, whatever it is. A constant added to
    losses and level changes nothing; equal losses have weights of exactly 1.
    """
    log_weights_G = ((losses_G - level) / temperature).clamp(max=math.log(max_weight))
    weights_G = (log_weights_G - log_weights_G.max()).exp()
    return weights_G * (len(weights_G) / weights_G.sum())
