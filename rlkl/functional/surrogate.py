"""Policy-gradient losses with importance ratios between the policy and its weights at the start of the step.

Shapes: B sequences, T tokens. A log-ratio function gives ``log_ratio_BT``; a surrogate turns it into a per-token loss
to be minimised. Advantages and the policy's log-probs must be zero outside the response (see
`rlkl.functional.reduce.masked`); loss and clip marks are then zero there too.

The two sequence-level ratios have the same value at every token of a response, but the gradient at a token is only that
of its own log-probability (GSPO-token, arXiv 2507.18071, eq. 13-14). With the matching weights (sequence mean for the
mean, sequence sum for the sum) this is the gradient of the sequence-level objective. It is also right if advantages
differ from token to token.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from rlkl.functional.kl import MAX_LOG_RATIO

LogRatio = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``(policy_logprobs_BT, proximal_logprobs_BT, response_BT) -> log_ratio_BT``."""


class Surrogate(NamedTuple):
    """``loss_BT`` float32; ``clipped_low_BT`` and ``clipped_high_BT`` bool: a bound changed the gradient."""

    loss_BT: Tensor
    clipped_low_BT: Tensor
    clipped_high_BT: Tensor


def token_log_ratio(policy_logprobs_BT: Tensor, proximal_logprobs_BT: Tensor, response_BT: Tensor) -> Tensor:
    """Return log(policy / proximal) for each token (PPO, arXiv 1707.06347)."""
    return torch.where(response_BT, policy_logprobs_BT - proximal_logprobs_BT, 0.0)


def sequence_mean_log_ratio(policy_logprobs_BT: Tensor, proximal_logprobs_BT: Tensor, response_BT: Tensor) -> Tensor:
    """Average the token log-ratios of each response (GSPO, arXiv 2507.18071, eq. 7); every token gets the mean."""
    log_ratio_BT = token_log_ratio(policy_logprobs_BT, proximal_logprobs_BT, response_BT)
    lengths_B1 = response_BT.sum(dim=1, keepdim=True).clamp(min=1)
    return _with_token_gradient(log_ratio_BT.sum(dim=1, keepdim=True) / lengths_B1, policy_logprobs_BT)


def sequence_sum_log_ratio(policy_logprobs_BT: Tensor, proximal_logprobs_BT: Tensor, response_BT: Tensor) -> Tensor:
    """Sum the token log-ratios of each response, its exact importance ratio (RLOO); every token gets the sum."""
    log_ratio_BT = token_log_ratio(policy_logprobs_BT, proximal_logprobs_BT, response_BT)
    return _with_token_gradient(log_ratio_BT.sum(dim=1, keepdim=True), policy_logprobs_BT)


def _with_token_gradient(log_ratio_B1: Tensor, policy_logprobs_BT: Tensor) -> Tensor:
    return log_ratio_B1.detach() + (policy_logprobs_BT - policy_logprobs_BT.detach())


def clipped_surrogate(log_ratio_BT: Tensor, advantages_BT: Tensor, *, lower: float, upper: float) -> Surrogate:
    """Return -min(ratio * A, clip(ratio, lower, upper) * A) (PPO, arXiv 1707.06347, eq. 7).

    A token is clipped low if A < 0 and ratio < lower, and high if A > 0 and ratio > upper. It then gets no gradient.
    """
    ratio_BT = _ratio(log_ratio_BT)
    loss_BT = -torch.minimum(ratio_BT * advantages_BT, ratio_BT.clamp(lower, upper) * advantages_BT)
    return Surrogate(
        loss_BT=loss_BT,
        clipped_low_BT=(ratio_BT < lower) & (advantages_BT < 0),
        clipped_high_BT=(ratio_BT > upper) & (advantages_BT > 0),
    )


def truncated_weight_surrogate(
    log_ratio_BT: Tensor, policy_logprobs_BT: Tensor, advantages_BT: Tensor, *, lower: float, upper: float
) -> Surrogate:
    """Return -stop_gradient(clip(ratio, lower, upper)) * A * policy_logprob (CISPO, arXiv 2506.13585, eq. 4-5).

    Every token keeps a gradient. A token counts as clipped if its weight was cut and A is not 0.
    """
    ratio_BT = _ratio(log_ratio_BT).detach()
    acts_BT = advantages_BT != 0
    return Surrogate(
        loss_BT=-ratio_BT.clamp(lower, upper) * advantages_BT * policy_logprobs_BT,
        clipped_low_BT=(ratio_BT < lower) & acts_BT,
        clipped_high_BT=(ratio_BT > upper) & acts_BT,
    )


def dual_clipped(surrogate: Surrogate, advantages_BT: Tensor, *, limit: float) -> Surrogate:
    """Limit the loss of ``surrogate`` to -limit * A if A < 0 (dual-clip PPO, arXiv 1912.09729).

    A token with A < 0 and a ratio above ``limit`` then gets no gradient, and counts as clipped high.
    """
    limit_BT = torch.where(advantages_BT < 0, -limit * advantages_BT, torch.inf)
    return Surrogate(
        loss_BT=torch.minimum(surrogate.loss_BT, limit_BT),
        clipped_low_BT=surrogate.clipped_low_BT,
        clipped_high_BT=surrogate.clipped_high_BT | (surrogate.loss_BT > limit_BT),
    )


def _ratio(log_ratio_BT: Tensor) -> Tensor:
    # Clamped, since an infinite ratio would turn a clipped token's zero gradient into NaN.
    return log_ratio_BT.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
