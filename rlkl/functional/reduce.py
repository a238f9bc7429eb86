"""From per-token losses to one number, as weights: ``loss = (weight_BT * loss_BT).sum()``.

Shapes: B sequences, T tokens. Every denominator is counted over the whole optimizer step (`rlkl.batch.Denominators`),
so the sum over micro-batches is the same however the step is cut.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlkl.batch import Denominators


def masked(x_BT: Tensor, response_BT: Tensor) -> Tensor:
    """``x_BT`` inside the response, exactly zero outside, in value and in gradient, even where ``x_BT`` is NaN there.

    Apply it before any arithmetic: a NaN that has once been multiplied by zero is still a NaN, and so is its gradient.
    """
    return torch.where(response_BT, x_BT, 0.0)


def sequence_mean_weights(response_BT: Tensor, denominators: Denominators) -> Tensor:
    """Mean over each response, then over sequences: long responses weigh less per token (GRPO, GSPO)."""
    lengths_B1 = response_BT.sum(dim=1, keepdim=True).clamp(min=1)
    return response_BT.float() / (lengths_B1 * denominators.sequences)


def token_mean_weights(response_BT: Tensor, denominators: Denominators) -> Tensor:
    """Mean over all response tokens of the step (DAPO, CISPO)."""
    return response_BT.float() / denominators.tokens


def sequence_sum_weights(response_BT: Tensor, denominators: Denominators) -> Tensor:
    """Sum over each response, mean over sequences: the likelihood of a whole response (RLOO)."""
    return response_BT.float() / denominators.sequences


def sequence_sum_over_limit_weights(response_BT: Tensor, denominators: Denominators) -> Tensor:
    """`sequence_sum_weights` divided by the longest length allowed, a constant (Dr. GRPO)."""
    return sequence_sum_weights(response_BT, denominators) / denominators.completion_limit
