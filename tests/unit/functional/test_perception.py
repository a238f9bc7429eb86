"""PAPO's clamped k3: values and gradients by hand, and its expectations by enumeration."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rlkl.functional.perception import kl_clean_to_corrupted_k3, variance_within_responses


def k3_and_gradients(clean: float, corrupted: float) -> tuple[float, float, float]:
    clean_BT = torch.tensor([[clean]], requires_grad=True)
    corrupted_BT = torch.tensor([[corrupted]], requires_grad=True)
    k_BT = kl_clean_to_corrupted_k3(clean_BT, corrupted_BT)
    to_clean_BT, to_corrupted_BT = torch.autograd.grad(k_BT.sum(), (clean_BT, corrupted_BT))
    return k_BT.item(), to_clean_BT.item(), to_corrupted_BT.item()


@pytest.mark.parametrize(
    ("clean", "corrupted", "k", "gradient"),
    [
        (-0.5, -0.5, 0.0, 0.0),
        # r - 1 - log r and 1 - r with log r = -0.3, 0.1 and 2.2.
        (-0.2, -0.5, 0.04081822, 1 - math.exp(-0.3)),
        (-1.0, -0.9, 0.00517092, 1 - math.exp(0.1)),
        (-2.3, -0.1, 5.8250135, -8.0250135),
        # Held at 10, without gradient, on both sides.
        (-5.0, -0.1, 10.0, 0.0),
        (-0.1, -15.0, 10.0, 0.0),
        (-300.0, -0.1, 10.0, 0.0),
        (-0.1, -300.0, 10.0, 0.0),
    ],
)
def test_k3_by_hand(clean: float, corrupted: float, k: float, gradient: float) -> None:
    assert k3_and_gradients(clean, corrupted) == pytest.approx((k, gradient, -gradient), rel=1e-5, abs=1e-6)


def test_k3_is_never_negative_and_never_above_ten() -> None:
    generator = torch.Generator().manual_seed(0)
    clean_BT, corrupted_BT = (-15 * torch.rand(50, 40, generator=generator) for _ in range(2))
    k_BT = kl_clean_to_corrupted_k3(clean_BT, corrupted_BT)
    assert (k_BT.min() >= 0, k_BT.max()) == (True, 10)


def test_bfloat16_stays_finite() -> None:
    clean_BT = torch.tensor([[-0.1, -80.0, -2.0]], dtype=torch.bfloat16)
    assert kl_clean_to_corrupted_k3(clean_BT, clean_BT.flip(1)).isfinite().all()


CLEAN_LOGITS_V = torch.tensor([0.5, -1.0, 0.0, 1.5, 0.2])
CORRUPTED_V = torch.tensor([0.1, 0.7, -0.4, 0.3, -1.2]).log_softmax(0)


def gradient_of(value: Tensor, logits_V: Tensor) -> Tensor:
    return torch.autograd.grad(value, logits_V, retain_graph=True)[0]


def test_expectations_by_enumeration() -> None:
    logits_V = CLEAN_LOGITS_V.clone().requires_grad_()
    clean_V = logits_V.log_softmax(0)
    p_V, q_V = clean_V.exp(), CORRUPTED_V.exp()
    forward = (p_V * (clean_V - CORRUPTED_V)).sum()
    reverse = (q_V * (CORRUPTED_V - clean_V)).sum()
    expected_k3 = (p_V.detach() * kl_clean_to_corrupted_k3(clean_V[None], CORRUPTED_V[None])[0]).sum()
    expected_k1 = (p_V.detach() * (clean_V - CORRUPTED_V)).sum()
    expected_nll = -(p_V.detach() * clean_V).sum()
    torch.testing.assert_close(expected_k3, forward)
    # Its value is KL(clean || corrupted), its gradient that of the other direction.
    torch.testing.assert_close(gradient_of(expected_k3, logits_V), gradient_of(reverse, logits_V))
    assert (gradient_of(expected_k3, logits_V) - gradient_of(forward, logits_V)).abs().max() > 0.05
    # On the policy's own tokens, k1 and the entropy term push nowhere in expectation.
    torch.testing.assert_close(gradient_of(expected_k1, logits_V), torch.zeros(5))
    torch.testing.assert_close(gradient_of(expected_nll, logits_V), torch.zeros(5))


def test_variance_within_responses() -> None:
    mask_BT = torch.tensor([[True, True, False], [False, True, False], [False, False, False], [True, True, True]])
    x_BT = torch.tensor([[1.0, 3.0, 50.0], [8.0, 2.0, 8.0], [1.0, 2.0, 3.0], [0.0, 3.0, 6.0]])
    assert variance_within_responses(x_BT, mask_BT).tolist() == [1.0, 0.0, 0.0, 6.0]
