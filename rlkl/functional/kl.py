"""Estimators of KL(policy || reference) from one sampled token each (J. Schulman, "Approximating KL Divergence", 2020).

Shapes: B sequences, T tokens. With x drawn from the policy and log r = reference_logprob(x) - policy_logprob(x):

| estimator | formula | value, as an estimate of KL(policy ‖ reference) | expected gradient when back-propagated |
|---|---|---|---|
| k1 | -log r | unbiased, either sign | zero: that of the expected score |
| k2 | (log r)^2 / 2 | biased in third order of log r, never negative | that of KL(policy ‖ reference) |
| k3 | r - 1 - log r | unbiased, never negative | that of KL(reference ‖ policy), the other direction |

So a loss takes k2 or k3; k1 belongs in the reward, where the policy gradient differentiates the sampling. The last
column holds for tokens that the policy itself sampled, each given its prefix: what a token does to the KL of later ones
is not in it, and only a reward carries that.

Positions that do not count must hold finite numbers (see `rlkl.functional.reduce.masked`).
"""

from __future__ import annotations

import torch
from torch import Tensor

MAX_LOG_RATIO = 20.0
"""Log-ratios are clamped to plus or minus this (nats) before exp, so that one stray token cannot overflow float32."""


def kl_policy_to_reference_k1(policy_logprobs_BT: Tensor, reference_logprobs_BT: Tensor) -> Tensor:
    """-log r. Its sum over a response is the sequence's log-ratio: the penalty to subtract from a reward."""
    return policy_logprobs_BT - reference_logprobs_BT


def kl_policy_to_reference_k2(policy_logprobs_BT: Tensor, reference_logprobs_BT: Tensor) -> Tensor:
    """(log r)^2 / 2. The only one of the three whose back-propagated gradient is that of KL(policy ‖ reference)."""
    return 0.5 * (reference_logprobs_BT - policy_logprobs_BT).square()


def kl_policy_to_reference_k3(policy_logprobs_BT: Tensor, reference_logprobs_BT: Tensor) -> Tensor:
    """r - 1 - log r, GRPO's penalty (arXiv 2402.03300, eq. 4). Back-propagated, it descends KL(reference ‖ policy)."""
    log_r_BT = (reference_logprobs_BT - policy_logprobs_BT).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    # expm1 keeps the digits that exp(x) - 1 loses where policy and reference nearly agree.
    return torch.expm1(log_r_BT) - log_r_BT
