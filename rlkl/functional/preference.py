"""Comparing two responses to one prompt, with a weight on every token.

Shapes: B sequences, T tokens, P pairs, L layers. With log-ratio r_t = log policy - log reference of the token that
stands there and k_t = KL(reference || policy) of the distributions that it was picked from, a response y is worth

    beta * sum_t (reward_mask_t * r_t + kl_mask_t * k_t)

and the preferred one of a pair should be worth more (SparsePO, arXiv 2410.05102). Masks 1 and 0 make it DPO (arXiv
2305.18290), masks 1 and 1 TDPO1 (arXiv 2404.11999). Sums are over the response, not divided by its length.
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
    """What each response is worth, ``[B]``. Log-ratios and KLs must be finite where the masks are zero."""
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
    """-log sigmoid(margin), Bradley and Terry's likelihood of each preference: log 2 where nothing tells both apart."""
    return -F.logsigmoid(margin_P)


def activation_mask(activation_BTL: Tensor, response_BT: Tensor) -> Tensor:
    """MaPO's mask from mean activations: each layer stretched to [0, 1] over the response, then averaged, ``[B, T]``.

    A layer that is constant over a response (as over a single token) counts as 1 there. The paper standardises first,
    which stretching undoes.
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
    """Share of each response's tokens whose mask is exactly zero, ``[B]``; 0 for an empty response."""
    return ((mask_BT == 0) & response_BT).sum(dim=1) / response_BT.sum(dim=1).clamp(min=1)
