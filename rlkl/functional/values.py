"""Losses of a value function. Shapes: B sequences, T tokens.

Values and targets must be finite everywhere (see `rlkl.functional.reduce.masked`).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class ValueLoss(NamedTuple):
    """``loss_BT`` float32; ``clipped_BT`` bool: the clip removed the gradient."""

    loss_BT: Tensor
    clipped_BT: Tensor


def squared_value_loss(values_BT: Tensor, returns_BT: Tensor) -> ValueLoss:
    """Return (value - return)^2 / 2."""
    loss_BT = 0.5 * (values_BT - returns_BT).square()
    return ValueLoss(loss_BT, torch.zeros_like(loss_BT, dtype=torch.bool))


def clipped_value_loss(values_BT: Tensor, proximal_values_BT: Tensor, returns_BT: Tensor, *, clip: float) -> ValueLoss:
    """Return the larger of two squared losses: of the value, and of the value clipped to within ``clip`` of its start.

    A value that has moved towards its return by more than ``clip`` gets no gradient. A value that has moved away keeps
    its full gradient (OpenAI Baselines' PPO2; the PPO paper has no such clip). A value within ``clip`` of its start
    never counts as clipped, although rounding can make its second loss the larger one.
    """
    moved_BT = values_BT - proximal_values_BT
    held_BT = proximal_values_BT + moved_BT.clamp(-clip, clip)
    free_BT = 0.5 * (values_BT - returns_BT).square()
    held_loss_BT = 0.5 * (held_BT - returns_BT).square()
    clipped_BT = (moved_BT.abs() > clip) & (held_loss_BT > free_BT)
    return ValueLoss(torch.maximum(free_BT, held_loss_BT), clipped_BT)


def explained_variance(values_BT: Tensor, returns_BT: Tensor, response_BT: Tensor) -> float:
    """Return 1 - Var(return - value) / Var(return) over the response tokens: 1 is perfect, 0 no better than a constant.

    Return 0 if the returns do not vary.
    """
    returns_N = returns_BT[response_BT].double()
    residuals_N = returns_N - values_BT[response_BT].double()
    if returns_N.numel() == 0 or (variance := float(returns_N.var(correction=0))) == 0.0:
        return 0.0
    return 1.0 - float(residuals_N.var(correction=0)) / variance
