"""KL divergence between policy and reference: estimates from sampled tokens, exact forms, and what to do with them.

Shapes: B sequences, T tokens, V vocabulary, K tokens kept of it. Everything is in nats.

Estimators take one token x drawn from the policy, with log r = reference_logprob(x) - policy_logprob(x)
(J. Schulman, "Approximating KL Divergence", 2020):

| estimator | formula | value, as an estimate of KL(policy ‖ reference) | expected gradient when back-propagated |
|---|---|---|---|
| k1 | -log r | unbiased, either sign | zero: that of the expected score |
| k2 | (log r)^2 / 2 | biased in third order of log r, never negative | that of KL(policy ‖ reference) |
| k3 | r - 1 - log r | unbiased, never negative | that of KL(reference ‖ policy), the other direction |

So a loss takes k2 or k3; k1 belongs in the reward, where the policy gradient differentiates the sampling. The
straight-through forms log the value of one and descend the gradient of another. The last column holds for tokens that
the policy itself sampled, each given its prefix: what a token does to the KL of later ones is not in it, and only a
reward carries that. ``docs/kl.md`` puts numbers on all of this.

Positions that do not count must hold finite numbers (see `rlkl.functional.reduce.masked`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

MAX_LOG_RATIO = 20.0
"""Log-ratios are clamped to plus or minus this (nats) before exp, so that one stray token cannot overflow float32."""


def kl_policy_to_reference_k1(policy_logprobs_BT: Tensor, reference_logprobs_BT: Tensor) -> Tensor:
    """Return -log r. Its sum over a response is the sequence's log-ratio: the penalty to subtract from a reward."""
    return policy_logprobs_BT - reference_logprobs_BT


def kl_policy_to_reference_k2(policy_logprobs_BT: Tensor, reference_logprobs_BT: Tensor) -> Tensor:
    """Return (log r)^2 / 2. Of the three it alone has, back-propagated, the gradient of KL(policy ‖ reference)."""
    return 0.5 * (reference_logprobs_BT - policy_logprobs_BT).square()


def kl_policy_to_reference_k3(policy_logprobs_BT: Tensor, reference_logprobs_BT: Tensor) -> Tensor:
    """Return r - 1 - log r (GRPO, arXiv 2402.03300, eq. 4). Back-propagated, it descends KL(reference ‖ policy)."""
    log_r_BT = (reference_logprobs_BT - policy_logprobs_BT).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    # expm1 keeps the digits that exp(x) - 1 loses where policy and reference nearly agree.
    return torch.expm1(log_r_BT) - log_r_BT


def straight_through(value: Tensor, gradient: Tensor) -> Tensor:
    """Return exactly ``value``, with the gradient of ``gradient`` in the backward pass."""
    return value.detach() + (gradient - gradient.detach())


def kl_policy_to_reference_k1_descending_k2(policy_logprobs_BT: Tensor, reference_logprobs_BT: Tensor) -> Tensor:
    """Return k1's value, which is unbiased, with k2's gradient: both are of KL(policy ‖ reference)."""
    return straight_through(
        kl_policy_to_reference_k1(policy_logprobs_BT, reference_logprobs_BT),
        kl_policy_to_reference_k2(policy_logprobs_BT, reference_logprobs_BT),
    )


def kl_policy_to_reference_k3_descending_k2(policy_logprobs_BT: Tensor, reference_logprobs_BT: Tensor) -> Tensor:
    """Return k3's value, unbiased and never negative, with k2's gradient: both are of KL(policy ‖ reference)."""
    return straight_through(
        kl_policy_to_reference_k3(policy_logprobs_BT, reference_logprobs_BT),
        kl_policy_to_reference_k2(policy_logprobs_BT, reference_logprobs_BT),
    )


def exact_kl(left_V: Tensor, right_V: Tensor) -> Tensor:
    """Compute KL(left || right) of log-probabilities over the last dimension; never below zero.

    A token that ``left`` cannot produce adds nothing, in value and in gradient.
    """
    left_p = left_V.exp()
    # The difference is masked, not the product: where both sides are -inf it is NaN, and so would the gradient be.
    log_ratio = torch.where(left_p > 0, left_V - right_V, 0.0)
    total = (left_p * log_ratio).sum(dim=-1)
    # Only the value is held at zero: where rounding pushes a small sum below it, the gradient must not vanish.
    return straight_through(total.clamp_min(0.0), total)


def cauchy_schwarz(left_V: Tensor, right_V: Tensor) -> Tensor:
    """Compute -2 log<p, q> + log<p, p> + log<q, q> of log-probabilities over the last dimension; never below zero.

    It is symmetric, and zero only if both are equal. A token of one side alone adds no log-ratio, so the divergence is
    infinite only if the two share no token at all. It is minus twice the log of the cosine between the vectors p and q
    (R. Jenssen et al., "The Cauchy-Schwarz divergence and Parzen windowing", 2006; in a loss: arXiv 2404.17951).
    """
    both, left, right = (x.logsumexp(dim=-1) for x in (left_V + right_V, 2 * left_V, 2 * right_V))
    total = left + right - 2 * both
    return straight_through(total.clamp_min(0.0), total)


def top_k_and_tail(policy_V: Tensor, reference_V: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Reduce both distributions to the reference's ``k`` likeliest tokens and, last, one bucket for all others.

    The KL of the two, in either direction, is a lower bound of the whole one that grows with ``k`` (log-sum
    inequality) and equals it at ``k`` = V. What it misses is the tail's share of the left side times the KL within the
    tail: little for KL(reference || policy), whose tail is the reference's, and possibly much for the other direction.
    """
    index = reference_V.topk(min(k, reference_V.shape[-1]), dim=-1).indices
    return _with_tail(policy_V, index), _with_tail(reference_V, index)


def _with_tail(logprobs_V: Tensor, index_K: Tensor) -> Tensor:
    kept = logprobs_V.gather(-1, index_K)
    # Summed over the others: 1 - sum(kept) would leave only rounding error of a small tail.
    others = logprobs_V.scatter(-1, index_K, torch.finfo(logprobs_V.dtype).min)
    return torch.cat([kept, others.logsumexp(dim=-1, keepdim=True)], dim=-1)


def free_nats(kl: Tensor, allowance: float) -> Tensor:
    """Return the part of ``kl`` above ``allowance`` nats; zero and without gradient below it."""
    return (kl - allowance).relu()


def free_nats_of_sequence(kl_BT: Tensor, response_BT: Tensor, allowance: float) -> Tensor:
    """Return ``kl_BT`` with ``allowance`` nats taken off each response, spread evenly over its tokens.

    A response whose sum is not above the allowance is zero, without gradient. Summed over the others' tokens this is
    the sum minus the allowance, with the gradient of the whole sum. ``kl_BT`` must be zero outside ``response_BT``.
    """
    share_B1 = allowance / response_BT.sum(dim=1, keepdim=True).clamp(min=1)
    above_B1 = kl_BT.detach().sum(dim=1, keepdim=True) > allowance
    return torch.where(response_BT & above_B1, kl_BT - share_B1, 0.0)


ADAPTIVE_ERROR_LIMIT = 0.2
"""The controller's relative error is clipped to plus or minus this, so that one odd step cannot throw it (Ziegler)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptiveKl:
    """A KL coefficient that is steered so that the KL stays near a target: a PI controller of its logarithm.

    The integral part is that of Ziegler et al. (arXiv 1909.08593, 2.2); the proportional one answers at once and goes
    when the KL is back. Its state is ``value`` and ``error``; save both to resume.
    """

    value: float
    """The integral part, above zero."""
    target: float
    """The KL to hold, nats per sequence, above zero."""
    horizon: float
    """Sequences over which a KL far above the target raises the integral part by about a fifth."""
    gain: float = 0.0
    """Of the proportional part, 0 to 4: a KL a tenth above the target raises the coefficient by ``gain`` tenths."""
    error: float = 0.0
    """The clipped relative error of the last step."""

    @property
    def coefficient(self) -> float:
        """The current weight of the KL, above zero."""
        return self.value * (1.0 + self.gain * self.error)

    def updated(self, observed: float, sequences: int) -> AdaptiveKl:
        """Return the controller after a step of ``sequences`` sequences whose mean KL was ``observed`` nats.

        A step of more than ``horizon`` sequences counts as one horizon, so that the coefficient stays above zero.
        """
        error = observed / self.target - 1.0
        error = min(max(error, -ADAPTIVE_ERROR_LIMIT), ADAPTIVE_ERROR_LIMIT)
        return replace(self, value=self.value * (1.0 + error * min(sequences / self.horizon, 1.0)), error=error)
