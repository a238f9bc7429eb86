"""Compute advantages: of completions within the group of their prompt, or of tokens relative to a value function.

Shapes: B sequences, T tokens. ``group_B`` numbers each sequence's prompt (any integers, any order, groups of any size).
Sums run in float64, where the mean of equal float32 rewards is exact: a group of equal rewards gets exactly zero.
So does a group of one, which has nothing to compare with.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

STD_EPSILON = 1e-4
"""Added to a group's standard deviation, so that rounding noise among rewards does not become advantages of order 1."""

WHITENING_EPSILON = 1e-8
"""Added to the standard deviation over a batch's tokens, against division by zero."""


def group_mean_advantages(rewards_B: Tensor, group_B: Tensor) -> Tensor:
    """Subtract the mean reward of its group from each reward (Dr. GRPO, arXiv 2503.20783)."""
    return _deviations(rewards_B, group_B).deviation_B.float()


def group_std_advantages(rewards_B: Tensor, group_B: Tensor) -> Tensor:
    """Compute (reward - mean) / (std + 1e-4) within each group (GRPO, arXiv 2402.03300); std divides by n - 1."""
    group = _deviations(rewards_B, group_B)
    squares_B = _group_sums(group.deviation_B.square(), group.index_B)
    std_B = (squares_B / (group.size_B - 1).clamp(min=1)).sqrt()
    return (group.deviation_B / (std_B + STD_EPSILON)).float()


def leave_one_out_advantages(rewards_B: Tensor, group_B: Tensor) -> Tensor:
    """Subtract the mean reward of the other members of its group from each reward (RLOO, arXiv 2402.14740)."""
    group = _deviations(rewards_B, group_B)
    # r - (sum - r) / (n - 1) = (r - mean) * n / (n - 1)
    return (group.deviation_B * group.size_B / (group.size_B - 1).clamp(min=1)).float()


def generalized_advantages(
    rewards_BT: Tensor, values_BT: Tensor, response_BT: Tensor, *, discount: float, gae_lambda: float
) -> Tensor:
    """Compute generalized advantage estimates (arXiv 1506.02438, eq. 16), zero outside the response.

    ``rewards_BT[t]`` is the reward for token t. ``values_BT[t]`` is the value of the state in which token t is chosen.
    A token's successor is the next response token, so the tokens between two parts of a response (a tool's answer) are
    skipped. The state after the last response token has value 0. The estimates plus ``values_BT`` are the
    lambda-returns that a critic trains on.
    """
    advantages_BT = torch.zeros_like(rewards_BT)
    next_advantage_B = next_value_B = torch.zeros_like(rewards_BT[:, 0])
    for t in reversed(range(rewards_BT.shape[1])):
        acts_B, value_B = response_BT[:, t], values_BT[:, t]
        residual_B = rewards_BT[:, t] + discount * next_value_B - value_B
        next_advantage_B = torch.where(acts_B, residual_B + discount * gae_lambda * next_advantage_B, next_advantage_B)
        next_value_B = torch.where(acts_B, value_B, next_value_B)
        advantages_BT[:, t] = torch.where(acts_B, next_advantage_B, 0.0)
    return advantages_BT


def whitened(x_BT: Tensor, response_BT: Tensor) -> Tensor:
    """Shift and scale ``x_BT`` to mean 0 and variance 1 (population) over all response tokens; zero elsewhere.

    Equal values become exactly zero; a batch without response tokens stays zero.
    """
    values_N = x_BT[response_BT].double()
    if values_N.numel() == 0:
        return torch.zeros_like(x_BT)
    scaled_BT = (x_BT.double() - values_N.mean()) / (values_N.std(correction=0) + WHITENING_EPSILON)
    return torch.where(response_BT, scaled_BT, 0.0).to(x_BT.dtype)


class _Deviations(NamedTuple):
    deviation_B: Tensor
    size_B: Tensor
    index_B: Tensor


def _deviations(rewards_B: Tensor, group_B: Tensor) -> _Deviations:
    """Return each reward minus its group's mean, the group's size, and the groups numbered from 0."""
    index_B = torch.unique(group_B, return_inverse=True)[1]
    rewards_B = rewards_B.double()
    size_B = _group_sums(torch.ones_like(rewards_B), index_B)
    return _Deviations(rewards_B - _group_sums(rewards_B, index_B) / size_B, size_B, index_B)


def _group_sums(x_B: Tensor, index_B: Tensor) -> Tensor:
    """Return the sum over its group for each member. ``index_B`` lies in [0, B)."""
    return torch.zeros_like(x_B).index_add(0, index_B, x_B)[index_B]
