"""The mean choice between a few answer tokens over many sequences, and its pull to a prior.

Shapes: B sequences, T tokens, K answer tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_SMALLEST = 1e-6


def last_of(token_ids_BT: Tensor, response_BT: Tensor, tokens: Sequence[int]) -> Tensor:
    """Return a mask ``[B, T]`` of each sequence's last response token that is one of ``tokens``."""
    at_BT = response_BT & torch.isin(token_ids_BT, torch.tensor(tokens, device=token_ids_BT.device))
    return at_BT & (at_BT.flip(1).cumsum(dim=1).flip(1) == 1)


def summed_shares(weights_BT: Tensor, logprobs_BTK: Tensor) -> Tensor:
    """Return the sum over tokens of weight times probability, ``[K]``; tokens of weight 0 are not read."""
    logprobs_BTK = torch.where((weights_BT != 0).unsqueeze(-1), logprobs_BTK, 0.0)
    return (weights_BT.unsqueeze(-1) * logprobs_BTK.exp()).sum(dim=(0, 1))


def pull(shares_K: Tensor, means: Sequence[float], prior: Sequence[float]) -> Tensor:
    """Return the sum over tokens of share_k log(mean_k / prior_k), in nats; a mean counts as at least 1e-6.

    With ``means`` fixed, its gradient is that of KL(share || prior) at share = mean.
    """
    slopes = [math.log(max(m, _SMALLEST) / p) for m, p in zip(means, prior, strict=True)]
    return (shares_K * torch.tensor(slopes, device=shares_K.device)).sum()


def blended(before: Sequence[float] | None, now: Sequence[float], memory: float) -> list[float]:
    """Return the running mean after a step: ``memory`` parts of the one before, the rest of ``now``."""
    memory = memory if before is not None else 0.0
    return [memory * m + (1 - memory) * x for m, x in zip(before or now, now, strict=True)]
