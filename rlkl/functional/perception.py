"""Measure how much answers depend on the image: KL to answers given a corrupted copy (PAPO, arXiv 2507.06448).

Shapes: B sequences, T tokens. ``clean`` log-probs are the policy's given the image, ``corrupted`` ones those of the
same tokens given the corrupted image. Both must be finite everywhere (see `rlkl.functional.reduce.masked`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlkl.functional.kl import MAX_LOG_RATIO

MAX_K3 = 10.0
"""Largest k3 of a token. It gets no gradient beyond: if log r > 2.611 or log r < -10.99998."""


def kl_clean_to_corrupted_k3(clean_logprobs_BT: Tensor, corrupted_logprobs_BT: Tensor) -> Tensor:
    """Estimate KL(clean || corrupted) by r - 1 - log r with r = corrupted / clean, in [0, 10]."""
    log_r_BT = (corrupted_logprobs_BT - clean_logprobs_BT).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    return (torch.expm1(log_r_BT) - log_r_BT).clamp(max=MAX_K3)


def variance_within_responses(x_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Return the population variance ``[B]`` of each row's values inside the mask; zero for a row without any."""
    counts_B1 = mask_BT.sum(dim=1, keepdim=True).clamp(min=1)
    means_B1 = torch.where(mask_BT, x_BT, 0.0).sum(dim=1, keepdim=True) / counts_B1
    deviations_BT = torch.where(mask_BT, x_BT - means_B1, 0.0)
    return deviations_BT.square().sum(dim=1) / counts_B1.squeeze(1)
