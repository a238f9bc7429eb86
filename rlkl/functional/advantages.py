"""Advantages of completions relative to the other completions of their prompt.

Shapes: B sequences. ``group_B`` numbers each sequence's prompt (any integers, any order, groups of any size).
Sums run in float64, where the mean of equal float32 rewards is exact: a group of equal rewards gets exactly zero.
So does a group of one, which has nothing to compare with.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

STD_EPSILON = 1e-4
"""Added to a group's standard deviation, so that rounding noise among rewards does not become advantages of order 1."""


def group_mean_advantages(rewards_B: Tensor, group_B: Tensor) -> Tensor:
    """Reward minus the mean reward of its group (Dr. GRPO, arXiv 2503.20783)."""
    return _deviations(rewards_B, group_B).deviation_B.float()


def group_std_advantages(rewards_B: Tensor, group_B: Tensor) -> Tensor:
    """(reward - mean) / (std + 1e-4) within its group (GRPO, arXiv 2402.03300); std divides by n - 1."""
    group = _deviations(rewards_B, group_B)
    squares_B = _group_sums(group.deviation_B.square(), group.index_B)
    std_B = (squares_B / (group.size_B - 1).clamp(min=1)).sqrt()
    return (group.deviation_B / (std_B + STD_EPSILON)).float()


def leave_one_out_advantages(rewards_B: Tensor, group_B: Tensor) -> Tensor:
    """Reward minus the mean reward of the other members of its group (RLOO, arXiv 2402.14740)."""
    group = _deviations(rewards_B, group_B)
    # r - (sum - r) / (n - 1) = (r - mean) * n / (n - 1)
    return (group.deviation_B * group.size_B / (group.size_B - 1).clamp(min=1)).float()


class _Deviations(NamedTuple):
    deviation_B: Tensor
    size_B: Tensor
    index_B: Tensor


def _deviations(rewards_B: Tensor, group_B: Tensor) -> _Deviations:
    """Each reward minus its group's mean, the group's size, and groups renumbered from 0."""
    index_B = torch.unique(group_B, return_inverse=True)[1]
    rewards_B = rewards_B.double()
    size_B = _group_sums(torch.ones_like(rewards_B), index_B)
    return _Deviations(rewards_B - _group_sums(rewards_B, index_B) / size_B, size_B, index_B)


def _group_sums(x_B: Tensor, index_B: Tensor) -> Tensor:
    """The sum over its group, at each member. ``index_B`` lies in [0, B)."""
    return torch.zeros_like(x_B).index_add(0, index_B, x_B)[index_B]
