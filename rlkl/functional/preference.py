"""Compare two responses to one prompt, with a weight on every token.

Shapes: B sequences, T tokens, P pairs, L layers. Let r_t = log policy - log reference of token t, and let k_t be
KL(reference || policy) of the two next-token distributions at t. The implicit reward of a response y is

    beta * sum_t (reward_mask_t * r_t + kl_mask_t * k_t)

and the preferred response of a pair should have the larger one (SparsePO, arXiv 2410.05102). Masks of 1 and 0 give DPO
(arXiv 2305.18290), masks of 1 and 1 give TDPO1 (arXiv 2404.11999). Sums are over the response, not divided by its
length.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class TokenMasks(NamedTuple):
    """Weights of each token's log-ratio and of its KL, zero outside the response."""

    reward_BT: Tensor
    kl_BT: Tensor


def implicit_rewards(log_ratio_BT: Tensor, kl_BT: Tensor, masks: TokenMasks, *, beta: float) -> Tensor:
    """Return the implicit reward of each response, ``[B]``. Log-ratios and KLs must be finite everywhere."""
    return beta * (masks.reward_BT * log_ratio_BT + masks.kl_BT * kl_BT).sum(dim=1)


def pair_rows(list_B: Tensor, rank_B: Tensor) -> tuple[Tensor, Tensor]:
    """Return the row numbers of the preferred (rank 0) and of the other sequence (rank 1) of each pair, ``[P]`` each.

    Rows of no list (-1) are in neither.
    """
    chosen_P, rejected_P = (((list_B >= 0) & (rank_B == rank)).nonzero()[:, 0] for rank in (0, 1))
    chosen_P = chosen_P[list_B[chosen_P].argsort()]
    rejected_P = rejected_P[list_B[rejected_P].argsort()]
    assert torch.equal(list_B[chosen_P], list_B[rejected_P]), "each pair has one preferred and one other sequence"
    return chosen_P, rejected_P


def preference_losses(margin_P: Tensor) -> Tensor:
    """Return -log sigmoid(margin), the Bradley-Terry loss of each preference; log 2 if both responses are equal."""
    return -F.logsigmoid(margin_P)


def activation_mask(activation_BTL: Tensor, response_BT: Tensor) -> Tensor:
    """Return MaPO's mask ``[B, T]``: scale each layer's mean activations to [0, 1] over the response, then average.

    A layer that is constant over a response (always so for a single token) counts as 1 there. The paper standardises
    the activations first; the scaling cancels that.
    """
    inside_BT1 = response_BT.unsqueeze(-1)
    low_B1L = torch.where(inside_BT1, activation_BTL, torch.inf).amin(dim=1, keepdim=True)
    high_B1L = torch.where(inside_BT1, activation_BTL, -torch.inf).amax(dim=1, keepdim=True)
    span_B1L = high_B1L - low_B1L
    varies_B1L = span_B1L > 0  # also false for an empty response, whose span is -inf
    stretched_BTL = (activation_BTL - torch.where(varies_B1L, low_B1L, 0.0)) / torch.where(varies_B1L, span_B1L, 1.0)
    mask_BT = torch.where(varies_B1L, stretched_BTL, 1.0).mean(dim=-1)
    return torch.where(response_BT, mask_BT, 0.0)


def zero_fraction(mask_BT: Tensor, response_BT: Tensor) -> Tensor:
    """Return the share ``[B]`` of each response's tokens whose mask is exactly zero; 0 for an empty response."""
    return ((mask_BT == 0) & response_BT).sum(dim=1) / response_BT.sum(dim=1).clamp(min=1)
