"""KL estimators: values by hand, expectations by enumerating a vocabulary of four tokens."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from rlkl.functional.kl import kl_policy_to_reference_k1, kl_policy_to_reference_k2, kl_policy_to_reference_k3

POLICY_LOGITS = torch.tensor([0.3, -1.0, 0.8, 0.1], dtype=torch.float64)
REFERENCE_LOGPROBS_V = torch.tensor([-0.5, 0.4, 0.2, 1.1], dtype=torch.float64).log_softmax(0)
Estimator = Callable[[Tensor, Tensor], Tensor]


def kl_policy_to_reference(logits_V: Tensor) -> Tensor:
    policy_V = logits_V.log_softmax(0)
    return (policy_V.exp() * (policy_V - REFERENCE_LOGPROBS_V)).sum()


def kl_reference_to_policy(logits_V: Tensor) -> Tensor:
    return (REFERENCE_LOGPROBS_V.exp() * (REFERENCE_LOGPROBS_V - logits_V.log_softmax(0))).sum()


def gradient(function: Callable[[Tensor], Tensor]) -> Tensor:
    logits_V = POLICY_LOGITS.clone().requires_grad_()
    return torch.autograd.grad(function(logits_V), logits_V)[0]


def expected(estimator: Estimator) -> Callable[[Tensor], Tensor]:
    """The mean over tokens drawn from the policy, the draw itself not differentiated: what a loss back-propagates."""

    def mean(logits_V: Tensor) -> Tensor:
        policy_V = logits_V.log_softmax(0)
        return (policy_V.detach().exp() * estimator(policy_V, REFERENCE_LOGPROBS_V)).sum()

    return mean


def rewarded(estimator: Estimator) -> Callable[[Tensor], Tensor]:
    """REINFORCE with the estimator as a cost: the value is frozen, the draw is differentiated."""

    def mean(logits_V: Tensor) -> Tensor:
        policy_V = logits_V.log_softmax(0)
        cost_V = estimator(policy_V, REFERENCE_LOGPROBS_V).detach()
        return (policy_V.detach().exp() * cost_V * policy_V).sum()

    return mean


def test_values_by_hand() -> None:
    policy_T = torch.tensor([-1.0, -1.0])
    reference_T = torch.tensor([-1.0 + math.log(2.0), -1.0 - math.log(2.0)])  # r = 2 and r = 1/2
    ln2 = math.log(2.0)
    assert kl_policy_to_reference_k1(policy_T, reference_T).tolist() == pytest.approx([-ln2, ln2])
    assert kl_policy_to_reference_k2(policy_T, reference_T).tolist() == pytest.approx([ln2**2 / 2] * 2)
    assert kl_policy_to_reference_k3(policy_T, reference_T).tolist() == pytest.approx([1 - ln2, -0.5 + ln2])


def test_k3_keeps_its_digits_near_zero() -> None:
    # r - 1 - log r = x^2 / 2 + x^3 / 6 for small x = log r; exp(x) - 1 - x in float32 is off by half of that here.
    x = 2.0**-12
    value = kl_policy_to_reference_k3(torch.tensor([-x]), torch.tensor([0.0])).item()
    assert value == pytest.approx(x**2 / 2 + x**3 / 6, rel=1e-3)


def test_k3_stays_finite() -> None:
    policy_T = torch.tensor([-300.0, -0.1], requires_grad=True)
    k3_T = kl_policy_to_reference_k3(policy_T, torch.tensor([-0.1, -300.0]))
    k3_T.sum().backward()
    assert k3_T.isfinite().all()
    assert policy_T.grad is not None
    assert policy_T.grad.isfinite().all()


@pytest.mark.parametrize("estimator", [kl_policy_to_reference_k1, kl_policy_to_reference_k3])
def test_k1_and_k3_estimate_the_kl_from_policy_to_reference(estimator: Estimator) -> None:
    torch.testing.assert_close(expected(estimator)(POLICY_LOGITS), kl_policy_to_reference(POLICY_LOGITS))


def test_back_propagated_k1_has_no_gradient() -> None:
    torch.testing.assert_close(gradient(expected(kl_policy_to_reference_k1)), torch.zeros(4, dtype=torch.float64))


def test_back_propagated_k2_has_the_gradient_of_the_kl_from_policy_to_reference() -> None:
    torch.testing.assert_close(gradient(expected(kl_policy_to_reference_k2)), gradient(kl_policy_to_reference))


def test_back_propagated_k3_has_the_gradient_of_the_other_kl() -> None:
    k3 = gradient(expected(kl_policy_to_reference_k3))
    torch.testing.assert_close(k3, gradient(kl_reference_to_policy))
    assert (k3 - gradient(kl_policy_to_reference)).abs().max() > 0.05


def test_k1_as_a_cost_in_the_reward_has_the_gradient_of_the_kl_from_policy_to_reference() -> None:
    torch.testing.assert_close(gradient(rewarded(kl_policy_to_reference_k1)), gradient(kl_policy_to_reference))


def test_k3_as_a_cost_in_the_reward_has_the_difference_of_both_gradients() -> None:
    torch.testing.assert_close(
        gradient(rewarded(kl_policy_to_reference_k3)),
        gradient(kl_policy_to_reference) - gradient(kl_reference_to_policy),
    )
