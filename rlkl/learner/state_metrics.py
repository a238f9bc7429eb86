"""Metrics of the policy at the start of a step: its entropy, its distance to the sampler and to the reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rlkl.batch import Batch
from rlkl.types import Example

_MOST_LAG = 20.0
"""Largest log-ratio (nats) of a token, so that one token cannot overflow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """Rollouts that the rule does not train on: they count in the KL to the reference, which is of the policy."""

    gap: float
    """Sum over their response tokens of the sampler's log-prob minus the reference's."""
    lengths_B: Tensor
    """Response tokens of each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StateMetrics:
    """Computes the metrics once the log-probs of the step's start are known."""

    batch: Batch
    """The sequences of the role ``main``, with all tokens that the policy sampled as response.

    If it sampled none of them, all their responses."""
    sampled: bool
    """Whether the policy sampled them: log-ratios estimate a KL on the policy's own samples alone."""
    reference_BT: Tensor | None
    """The reference's log-probs; None: no reference is kept."""
    left_out: LeftOut | None = None
    stale: bool = False
    """Whether older weights sampled the tokens (``rollout.schedule``)."""

    def compute(self, proximal_BT: Tensor, entropy_BT: Tensor) -> dict[str, float]:
        """Return the metrics. Both arguments are ``[B, T]``, of the weights at the start of the step."""
        mask_BT, tokens = self.batch.response_BT, self.batch.denominators.tokens
        metrics = {"entropy/policy": float(torch.where(mask_BT, entropy_BT, 0.0).sum()) / tokens}
        if not self.sampled:
            return metrics
        gap_N = (proximal_BT - self.batch.rollout_logprobs_BT)[mask_BT]
        metrics["rollout/mismatch_max"] = float(gap_N.abs().max()) if gap_N.numel() else 0.0
        metrics["rollout/mismatch_kl"] = float(-gap_N.sum()) / tokens
        if self.reference_BT is not None:
            metrics |= self._reference_kl(proximal_BT, self.reference_BT)
        return metrics

    def _reference_kl(self, proximal_BT: Tensor, reference_BT: Tensor) -> dict[str, float]:
        """Return the mean of log pi - log pi_ref over all samples; an empty response does not count.

        For rollouts that are not trained on, log pi is the sampler's. A token that older weights sampled counts pi
        over their probability times, so that its expectation is the KL of pi at its place.
        """
        mask_BT = self.batch.response_BT
        gap_N = (proximal_BT - reference_BT)[mask_BT]
        if self.stale:
            lag_N = (proximal_BT - self.batch.rollout_logprobs_BT)[mask_BT]
            gap_N = gap_N * lag_N.clamp(-_MOST_LAG, _MOST_LAG).exp()
        gap = float(gap_N.sum())
        lengths_B = mask_BT.sum(dim=1)
        if self.left_out is not None:
            gap += self.left_out.gap
            lengths_B = torch.cat([lengths_B, self.left_out.lengths_B])
        sequences, tokens = max(int((lengths_B > 0).sum()), 1), max(int(lengths_B.sum()), 1)
        return {"kl/policy_to_reference": gap / sequences, "kl/policy_to_reference_per_token": gap / tokens}


def only_sampled(batch: Batch, examples: Sequence[Example]) -> Batch | None:
    """Return the batch without the response tokens that the policy did not sample; None if it sampled none of them.

    ``batch`` holds the examples, row by row, with the responses of the role ``main`` alone.
    """
    sampled_B = torch.tensor([e.rollout.completion.logprobs is not None for e in examples])
    own_BT = batch.uncorrected_BT & sampled_B.unsqueeze(1)
    if torch.equal(own_BT, batch.response_BT):
        return batch
    return replace(batch, response_BT=own_BT).recounted() if bool(own_BT.any()) else None
