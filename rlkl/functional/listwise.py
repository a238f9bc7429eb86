"""Compare a list of responses by an order: Plackett-Luce losses with a weight on each place, exact for ties.

Shapes: B sequences, L lists, G places of the longest list, K blocks of tied members, N and U nodes of two integrals.
Lists are padded: ``present_LG`` is False at places without a member, whose other values do not matter.

The Plackett-Luce model draws an order of a list: first one member with probability softmax(scores), then one of the
others in the same way, and so on. With weight a_k on the k-th place, the loss of an order is

    sum_k a_k (logsumexp_{l >= k} s_l - s_k)

A weight of 1 on the first place alone gives cross-entropy. Equal weights give ListMLE. Weights softmax(target / tau)
give PLD (arXiv 2506.12542).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

NEGLIGIBLE = 44.0
"""exp(-44) is below the rounding of float64, also if many such numbers are added."""
_STEP = 0.25
"""Distance of the nodes of the outer integral in log t. The error of the sum is about exp(-pi^2 / step), 1e-17."""


class Lists(NamedTuple):
    """The rows of each list, padded."""

    rows_LG: Tensor
    """int64: row numbers, 0 where ``present_LG`` is False."""
    present_LG: Tensor
    """bool."""


def list_rows(list_B: Tensor) -> Lists:
    """Return the rows of each list, in the order of the lists' numbers and of the rows; -1 is in no list."""
    rows_N = (list_B >= 0).nonzero()[:, 0]
    numbers_L, index_N, size_L = list_B[rows_N].unique(return_inverse=True, return_counts=True)
    order_N = index_N.argsort(stable=True)
    start_L = size_L.cumsum(0) - size_L
    list_N = index_N[order_N]
    place_N = torch.arange(len(rows_N), device=list_B.device) - start_L[list_N]
    rows_LG = torch.zeros((len(numbers_L), int(size_L.max()) if len(size_L) else 1), dtype=torch.int64).to(list_B)
    present_LG = torch.zeros_like(rows_LG, dtype=torch.bool)
    rows_LG[list_N, place_N] = rows_N[order_N]
    present_LG[list_N, place_N] = True
    return Lists(rows_LG, present_LG)


def place_weights(targets_LG: Tensor, present_LG: Tensor, *, tau_L: Tensor) -> Tensor:
    """Return alpha = softmax(target / tau) over each list, ``[L, G]`` float64; 0 for absent members.

    The place of a member has the weight that belongs to its own target (PLD, arXiv 2506.12542).
    """
    logits_LG = targets_LG.double() / tau_L.double().unsqueeze(1)
    return torch.where(present_LG, logits_LG, -torch.inf).softmax(dim=1)


def plackett_luce_losses(scores_LG: Tensor, targets_LG: Tensor, weights_LG: Tensor, present_LG: Tensor) -> Tensor:
    """Return the loss of each list ordered by falling target, ``[L]`` float64.

    ``weights_LG``: the weight of the place that a member takes, equal for members of equal target. If targets are tied,
    the loss is the exact mean over all orders of the tied members. Shifting all scores of a list changes nothing.
    """
    scores_LG = torch.where(present_LG, scores_LG.double(), 0.0)
    both_LGG = present_LG.unsqueeze(1) & present_LG.unsqueeze(2)
    lower_LGG = both_LGG & (targets_LG.unsqueeze(1) < targets_LG.unsqueeze(2))
    tied_LGG = both_LGG & (targets_LG.unsqueeze(1) == targets_LG.unsqueeze(2))
    itself_GG = torch.eye(scores_LG.shape[1], dtype=torch.bool, device=scores_LG.device)
    rest_LGG = torch.where(lower_LGG | itself_GG, scores_LG.unsqueeze(1), -torch.inf)
    costs_LG = rest_LGG.logsumexp(dim=2) - scores_LG
    alone_LG = present_LG & (tied_LGG.sum(dim=2) == 1)
    losses_L = torch.where(alone_LG, weights_LG * costs_LG, 0.0).sum(dim=1)

    is_first_LG = present_LG & ~alone_LG & ~(tied_LGG & itself_GG.new_ones(itself_GG.shape).tril(-1)).any(dim=2)
    list_K, place_K = is_first_LG.nonzero().unbind(dim=1)
    if not len(list_K):
        return losses_L
    members_KG, below_KG = tied_LGG[list_K, place_K], lower_LGG[list_K, place_K]
    costs_K = _block_costs(scores_LG[list_K], members_KG, below_KG)
    return losses_L.index_add(0, list_K, weights_LG[list_K, place_K] * costs_K)


def _block_costs(scores_KG: Tensor, members_KG: Tensor, below_KG: Tensor) -> Tensor:
    """Return, for blocks of tied members, the sum of logsumexp - s over the block's places, mean over its orders.

    The members that are left at a place are a random subset S of the block. So the mean is, with A the sum of exp(s)
    over the members below the block and w = exp(s),

        sum_{r=1..m} E_{|S|=r} log(A + sum_S w) - sum_block s

    Two identities make this two short integrals, whatever the number m of members: log x is the integral of
    (exp(-t) - exp(-t x)) / t over t > 0, and sum_{r=0..m} E_{|S|=r} exp(-t sum_S w) is m + 1 times the integral over u
    from 0 to 1 of the product over the block of 1 - u (1 - exp(-t w)), a polynomial in u (Gauss-Legendre is exact).
    """
    near = _without_gaps(scores_KG, members_KG, below_KG)
    size_K = members_KG.sum(dim=1).double()
    lowest = float(torch.where(members_KG, near.scores_KG, 0.0).min().detach())
    log_t_N = torch.arange(-NEGLIGIBLE, 4.0 - lowest, _STEP, dtype=torch.float64, device=scores_KG.device)
    nodes, weights = np.polynomial.legendre.leggauss(scores_KG.shape[1] // 2 + 1)
    u_U = torch.tensor((nodes + 1) / 2, device=scores_KG.device)
    share_U = torch.tensor(weights / 2, device=scores_KG.device)
    gone_KNG = torch.where(members_KG.unsqueeze(1), 1 - _decay(log_t_N[:, None] + near.scores_KG.unsqueeze(1)), 0.0)
    subsets_KN = ((1 - u_U[:, None] * gone_KNG.unsqueeze(2)).prod(dim=3) * share_U).sum(dim=2)
    subsets_KN = (size_K[:, None] + 1) * subsets_KN - 1  # without the empty subset
    has_below_K1 = below_KG.any(dim=1, keepdim=True)
    below_KN = torch.where(has_below_K1, _decay(log_t_N + near.below_K.unsqueeze(1)), 1.0)
    mean_logs_K = _STEP * (size_K[:, None] * _decay(log_t_N) - below_KN * subsets_KN).sum(dim=1)
    return mean_logs_K + near.shift_K - torch.where(members_KG, scores_KG, 0.0).sum(dim=1)


def _decay(log_x: Tensor) -> Tensor:
    """Return exp(-exp(log_x)); 0 above exp(6), where the gradient would be infinity times 0."""
    return torch.where(log_x < 6.0, (-log_x.clamp(max=6.0).exp()).exp(), 0.0)


class _Near(NamedTuple):
    """Scores of at most `NEGLIGIBLE` between neighbours, and what that changes in the sum of mean logarithms."""

    scores_KG: Tensor
    below_K: Tensor
    shift_K: Tensor


def _without_gaps(scores_KG: Tensor, members_KG: Tensor, below_KG: Tensor) -> _Near:
    """Shift scores so that the largest is 0, and narrow the gaps in which a logsumexp sees the larger side alone.

    So the integral stays short for any scores. A gap that is narrowed by x changes the logsumexp of exactly those
    subsets that lie below it, by x. With b of the block's m members below the gap, these are b / (m - b + 1) subsets,
    counted by their probability at each place.
    """
    has_below_K = below_KG.any(dim=1)
    floor_K = torch.where(members_KG, scores_KG, torch.inf).amin(dim=1)
    some_KG = torch.where(has_below_K.unsqueeze(1), below_KG, members_KG)  # never empty: its logsumexp has a gradient
    below_K = torch.where(some_KG, scores_KG, -torch.inf).logsumexp(dim=1)
    below_K = torch.where(has_below_K, below_K, floor_K)
    filled_KG = torch.where(members_KG, scores_KG, floor_K.unsqueeze(1))
    sorted_KS, order_KS = torch.cat([filled_KG, below_K.unsqueeze(1)], dim=1).sort(dim=1, descending=True)
    gap_KS = -sorted_KS.diff(dim=1)
    narrow_KS = -torch.nn.functional.pad(gap_KS.clamp(max=NEGLIGIBLE).cumsum(dim=1), (1, 0))
    near_KS = torch.zeros_like(sorted_KS).scatter(1, order_KS, narrow_KS)

    is_member_KS = torch.nn.functional.pad(members_KG, (0, 1)).gather(1, order_KS)
    size_K1 = is_member_KS.sum(dim=1, keepdim=True)
    under_KS = (size_K1 - is_member_KS.cumsum(dim=1))[:, :-1].double()
    is_rest_KS = (order_KS == scores_KG.shape[1]) & has_below_K.unsqueeze(1)
    rest_above_KS = is_rest_KS.cumsum(dim=1)[:, :-1] > 0
    subsets_KS = torch.where(rest_above_KS, 0.0, under_KS / (size_K1 - under_KS + 1))
    shift_K = size_K1[:, 0] * sorted_KS[:, 0] - ((gap_KS - NEGLIGIBLE).clamp(min=0) * subsets_KS).sum(dim=1)
    return _Near(near_KS[:, :-1], near_KS[:, -1], shift_K)


def ranknet_losses(scores_LG: Tensor, preferred_LGG: Tensor, present_LG: Tensor) -> Tensor:
    """Return RankNet's loss of each list, ``[L]`` float64: the mean over its pairs i, j, with d = s_i - s_j, of

        -p log sigmoid(d) - (1 - p) log sigmoid(-d)

    ``preferred_LGG[l, i, j]`` is p, the probability that i is better than j. Each list has two members or more. With
    two it is Bradley and Terry's loss with a soft label.
    """
    scores_LG = torch.where(present_LG, scores_LG.double(), 0.0)
    gap_LGG = scores_LG.unsqueeze(2) - scores_LG.unsqueeze(1)
    losses_LGG = torch.nn.functional.softplus(gap_LGG) - preferred_LGG.double() * gap_LGG
    pairs_LGG = (present_LG.unsqueeze(1) & present_LG.unsqueeze(2)).triu(diagonal=1)
    return torch.where(pairs_LGG, losses_LGG, 0.0).sum(dim=(1, 2)) / pairs_LGG.sum(dim=(1, 2))


def soft_preferences(targets_LG: Tensor) -> Tensor:
    """Return p = sigmoid(t_i - t_j), ``[L, G, G]``. Targets of 1 and 0 give 0.73, not 1 (DeAR, arXiv 2508.16998)."""
    return (targets_LG.unsqueeze(2) - targets_LG.unsqueeze(1)).sigmoid()


def hard_preferences(targets_LG: Tensor) -> Tensor:
    """Return p = 1 if t_i > t_j, 1/2 if they are equal, and 0 otherwise, ``[L, G, G]``."""
    return ((targets_LG.unsqueeze(2) - targets_LG.unsqueeze(1)).sign() + 1) / 2


def list_kl_losses(scores_LG: Tensor, targets_LG: Tensor, present_LG: Tensor, *, temperature: float) -> Tensor:
    """Return T^2 KL(softmax(t / T) || softmax(s / T)) of each list, ``[L]`` float64 (DeAR, arXiv 2508.16998).

    A shift of all scores of a list changes nothing, so absolute scores are not learned.
    """
    teacher_LG, student_LG = (
        torch.where(present_LG, x_LG.double() / temperature, -torch.inf).log_softmax(dim=1)
        for x_LG in (targets_LG, scores_LG)
    )
    gaps_LG = torch.where(present_LG, teacher_LG, 0.0) - torch.where(present_LG, student_LG, 0.0)
    return temperature**2 * (teacher_LG.exp() * gaps_LG).sum(dim=1)
