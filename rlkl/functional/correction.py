"""Weights that correct for a sampler whose log-probs are not those of the learner.

The loss of a rule holds for samples of the policy at the start of the step, the proximal one. The sampler is not quite
that policy: it rounds otherwise, or its weights are some steps older. The decoupled form (arXiv 2110.00641) multiplies
each token's loss with ``w = f(r)``, a constant, where ``r = proximal / sampler`` is the probability ratio of the token.
It leaves the rule's own clipped ratio ``policy / proximal`` as it is.

| f | weight | bounds | source |
|---|---|---|---|
| `token_truncate` | min(r, high) | high 2 | truncated importance sampling (TIS, Yao et al. 2025) |
| `token_mask` | r if low <= r <= high, else 0 | 0.5, 5 | IcePop |
| `sequence_mask` | r if low <= exp(mean of log r) <= high, else 0 | 0.99, 1.01 | geometric mean of a sequence |

Shapes: B sequences, T tokens. ``log_ratio_BT`` is 0 outside the response, where the weight is 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from rlkl.functional.kl import MAX_LOG_RATIO


class Correction(NamedTuple):
    """``weight_BT`` float32, constants. ``cut_BT`` bool: response tokens whose weight is not their ratio."""

    weight_BT: Tensor
    cut_BT: Tensor


class Bounds(NamedTuple):
    """The smallest and the largest ratio that is left as it is."""

    low: float
    high: float


def sampler_log_ratio(proximal_BT: Tensor, sampler_BT: Tensor, response_BT: Tensor) -> Tensor:
    """Return log(proximal / sampler) of each response token, within +-`MAX_LOG_RATIO`, without gradient.

    It is 0 in a row whose sampler's log-probs are all 0: the policy did not sample it.
    """
    known_BT = response_BT & (sampler_BT != 0).any(dim=1, keepdim=True)
    gap_BT = (proximal_BT - sampler_BT).detach()
    return torch.where(known_BT, gap_BT, 0.0).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def token_truncate(log_ratio_BT: Tensor, response_BT: Tensor, bounds: Bounds) -> Correction:
    """Limit each token's ratio from above."""
    ratio_BT = log_ratio_BT.exp()
    return Correction(weight_BT=ratio_BT.clamp(max=bounds.high), cut_BT=response_BT & (ratio_BT > bounds.high))


def token_mask(log_ratio_BT: Tensor, response_BT: Tensor, bounds: Bounds) -> Correction:
    """Leave out tokens whose ratio is not within the bounds."""
    ratio_BT = log_ratio_BT.exp()
    cut_BT = response_BT & ((ratio_BT < bounds.low) | (ratio_BT > bounds.high))
    return Correction(weight_BT=torch.where(cut_BT, 0.0, ratio_BT), cut_BT=cut_BT)


def sequence_mask(log_ratio_BT: Tensor, response_BT: Tensor, bounds: Bounds) -> Correction:
    """Leave out sequences whose geometric mean of the ratios is not within the bounds."""
    lengths_B1 = response_BT.sum(dim=1, keepdim=True).clamp(min=1)
    mean_B1 = (log_ratio_BT.sum(dim=1, keepdim=True) / lengths_B1).exp()
    cut_BT = response_BT & ((mean_B1 < bounds.low) | (mean_B1 > bounds.high))
    return Correction(weight_BT=torch.where(cut_BT, 0.0, log_ratio_BT.exp()), cut_BT=cut_BT)


CORRECTIONS: Mapping[str, Callable[[Tensor, Tensor, Bounds], Correction]] = {
    "token_truncate": token_truncate,
    "token_mask": token_mask,
    "sequence_mask": sequence_mask,
}
"""The corrections by name."""


def correction_metrics(correction: Correction, response_BT: Tensor) -> dict[str, float]:
    """Return mean and largest weight, the share of tokens that are cut, and the effective sample size.

    The effective sample size is (sum w)^2 / sum w^2 over the response tokens, divided by their number (Kong 1992): 1 if
    all weights are equal, 0 if all tokens are left out.
    """
    tokens = int(response_BT.sum())
    if not tokens:
        return {}
    weight_N = correction.weight_BT[response_BT].double()
    return {
        "correction/weight_mean": float(weight_N.mean()),
        "correction/weight_max": float(weight_N.max()),
        "correction/cut_fraction": float(correction.cut_BT.sum()) / tokens,
        "rollout/ess": float(weight_N.sum() ** 2 / weight_N.square().sum().clamp(min=1e-30)) / tokens,
    }
