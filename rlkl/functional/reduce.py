"""Weights that reduce per-token losses to one number: ``loss = (weight_BT * loss_BT).sum()``.

Shapes: B sequences, T tokens. Every denominator is counted over the whole optimizer step (`rlkl.batch.Denominators`),
so the sum over micro-batches is the same however the step is cut.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlkl.batch import Denominators


def masked(x_BT: Tensor, response_BT: Tensor) -> Tensor:
    """Set ``x_BT`` to zero outside the response, in value and in gradient, even if it is NaN there.

    Call it before any arithmetic: NaN times zero is still NaN, in value and in gradient.
    """
    return torch.where(response_BT, x_BT, 0.0)


def sequence_mean_weights(response_BT: Tensor, denominators: Denominators) -> Tensor:
    """Average over each response, then over sequences: tokens of long responses weigh less (GRPO, GSPO)."""
    lengths_B1 = response_BT.sum(dim=1, keepdim=True).clamp(min=1)
    return response_BT.float() / (lengths_B1 * denominators.sequences)


def token_mean_weights(response_BT: Tensor, denominators: Denominators) -> Tensor:
    """Average over all response tokens of the step (DAPO, CISPO)."""
    return response_BT.float() / denominators.tokens


def sequence_sum_weights(response_BT: Tensor, denominators: Denominators) -> Tensor:
    """Sum over each response, then average over sequences: the likelihood of a whole response (RLOO)."""
    return response_BT.float() / denominators.sequences


def sequence_sum_over_limit_weights(response_BT: Tensor, denominators: Denominators) -> Tensor:
    """Divide `sequence_sum_weights` by the constant ``rollout.max_new_tokens`` (Dr. GRPO)."""
    return sequence_sum_weights(response_BT, denominators) / denominators.completion_limit
