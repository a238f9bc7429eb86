"""Log-ratios and surrogates by hand, with the places where their gradient must vanish."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rlkl.functional import surrogate

INFINITY = math.inf


def leaf(values: list[float]) -> Tensor:
    return torch.tensor([values], requires_grad=True)


def gradient(output: Tensor, x: Tensor) -> list[float]:
    return torch.autograd.grad(output.sum(), x)[0].flatten().tolist()


def log_ratio(ratios: list[float]) -> Tensor:
    return torch.tensor([ratios]).log().requires_grad_()


def test_clipped_surrogate() -> None:
    # A > 0: 0.5, 1.1 and 1.5; A < 0 the same; A = 0.
    x_BT = log_ratio([0.5, 1.1, 1.5, 0.5, 1.1, 1.5, 1.5])
    advantages_BT = torch.tensor([[2.0, 2.0, 2.0, -2.0, -2.0, -2.0, 0.0]])
    result = surrogate.clipped_surrogate(x_BT, advantages_BT, lower=0.8, upper=1.2)
    # The pessimistic side: for A > 0 the ratio stops paying above 1.2, for A < 0 below 0.8.
    assert result.loss_BT[0].tolist() == pytest.approx([-1.0, -2.2, -2.4, 1.6, 2.2, 3.0, 0.0])
    assert gradient(result.loss_BT, x_BT) == pytest.approx([-1.0, -2.2, 0.0, 0.0, 2.2, 3.0, 0.0])
    assert result.clipped_low_BT[0].tolist() == [False, False, False, True, False, False, False]
    assert result.clipped_high_BT[0].tolist() == [False, False, True, False, False, False, False]


def test_clipped_surrogate_on_policy_has_the_plain_policy_gradient() -> None:
    x_BT = torch.zeros(1, 2, requires_grad=True)
    result = surrogate.clipped_surrogate(x_BT, torch.tensor([[3.0, -3.0]]), lower=0.8, upper=1.2)
    assert gradient(result.loss_BT, x_BT) == [-3.0, 3.0]


def test_without_bounds_nothing_is_clipped() -> None:
    x_BT = log_ratio([0.01, 50.0])
    result = surrogate.clipped_surrogate(x_BT, torch.tensor([[-1.0, 1.0]]), lower=0.0, upper=INFINITY)
    assert result.loss_BT[0].tolist() == pytest.approx([0.01, -50.0])
    assert not (result.clipped_low_BT | result.clipped_high_BT).any()


def test_clipped_surrogate_of_enormous_log_ratios_is_finite() -> None:
    x_BT = leaf([1000.0, 1000.0, -1000.0, -1000.0])
    advantages_BT = torch.tensor([[1.0, -1.0, 1.0, -1.0]])
    result = surrogate.clipped_surrogate(x_BT, advantages_BT, lower=0.8, upper=1.2)
    assert result.loss_BT.isfinite().all()
    assert all(math.isfinite(value) for value in gradient(result.loss_BT, x_BT))


def test_truncated_weight_gives_every_token_a_gradient() -> None:
    policy_BT = leaf([-1.0, -2.0, -3.0, -4.0])
    x_BT = log_ratio([0.5, 2.0, 9.0, 9.0])
    advantages_BT = torch.tensor([[1.0, -1.0, 1.0, -1.0]])
    result = surrogate.truncated_weight_surrogate(x_BT, policy_BT, advantages_BT, lower=0.0, upper=5.0)
    assert result.loss_BT[0].tolist() == pytest.approx([0.5, -4.0, 15.0, -20.0])
    assert gradient(result.loss_BT, policy_BT) == pytest.approx([-0.5, 2.0, -5.0, 5.0])
    assert result.clipped_high_BT[0].tolist() == [False, False, True, True]
    assert not result.clipped_low_BT.any()


def test_truncated_weight_without_advantage_is_not_clipped() -> None:
    result = surrogate.truncated_weight_surrogate(
        log_ratio([0.5, 9.0]), leaf([-1.0, -1.0]), torch.zeros(1, 2), lower=0.8, upper=5.0
    )
    assert not (result.clipped_low_BT | result.clipped_high_BT).any()


def test_truncated_weight_is_not_differentiated() -> None:
    policy_BT = leaf([-1.0])
    x_BT = policy_BT + 1.5
    result = surrogate.truncated_weight_surrogate(x_BT, policy_BT, torch.ones(1, 1), lower=0.0, upper=5.0)
    assert gradient(result.loss_BT, policy_BT) == pytest.approx([-math.exp(0.5)])


RESPONSE_BT = torch.tensor([[False, True, True, True], [False, True, False, False]])
PROXIMAL_BT = torch.tensor([[0.0, -1.0, -1.0, -1.0], [0.0, -2.0, 0.0, 0.0]])
POLICY_BT = torch.tensor([[0.0, -0.4, -0.9, -1.1], [0.0, -1.5, 0.0, 0.0]])  # log-ratios 0.6, 0.1, -0.1 and 0.5


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (surrogate.token_log_ratio, [[0.0, 0.6, 0.1, -0.1], [0.0, 0.5, 0.0, 0.0]]),
        (surrogate.sequence_mean_log_ratio, [[0.2] * 4, [0.5] * 4]),
        (surrogate.sequence_sum_log_ratio, [[0.6] * 4, [0.5] * 4]),
    ],
)
def test_log_ratios(function: surrogate.LogRatio, expected: list[list[float]]) -> None:
    policy_BT = POLICY_BT.clone().requires_grad_()
    log_ratio_BT = function(policy_BT, PROXIMAL_BT, RESPONSE_BT)
    torch.testing.assert_close(log_ratio_BT, torch.tensor(expected))
    # The gradient at a token is that of its own log-probability alone.
    (grad_BT,) = torch.autograd.grad(log_ratio_BT[0, 2], policy_BT)
    assert torch.equal(grad_BT.nonzero(), torch.tensor([[0, 2]]))
    assert grad_BT[0, 2] == 1.0


def test_sequence_mean_ratio_has_the_gradient_of_the_sequence_objective() -> None:
    """Averaged over the tokens, the per-token form has the gradient of exp(mean log-ratio) itself."""
    policy_BT = POLICY_BT.clone().requires_grad_()
    per_token_BT = surrogate.sequence_mean_log_ratio(policy_BT, PROXIMAL_BT, RESPONSE_BT).exp()
    ours = torch.autograd.grad((per_token_BT * RESPONSE_BT / RESPONSE_BT.sum(1, keepdim=True)).sum(), policy_BT)[0]
    sequence_B = ((policy_BT - PROXIMAL_BT).sum(1) / RESPONSE_BT.sum(1)).exp()
    plain = torch.autograd.grad(sequence_B.sum(), policy_BT)[0]
    torch.testing.assert_close(ours, plain * RESPONSE_BT)


def test_sequence_sum_ratio_has_the_gradient_of_the_sequence_objective() -> None:
    policy_BT = POLICY_BT.clone().requires_grad_()
    per_token_BT = surrogate.sequence_sum_log_ratio(policy_BT, PROXIMAL_BT, RESPONSE_BT).exp()
    ours = torch.autograd.grad((per_token_BT * RESPONSE_BT).sum(), policy_BT)[0]
    plain = torch.autograd.grad((policy_BT - PROXIMAL_BT).sum(1).exp().sum(), policy_BT)[0]
    torch.testing.assert_close(ours, plain * RESPONSE_BT)


def test_dual_clip_holds_the_loss_of_bad_tokens() -> None:
    # A < 0 at ratios 0.5, 2, 4 and 5, then A > 0 and A = 0 at 4; nothing above -limit * A = 6.
    x_BT = log_ratio([0.5, 2.0, 4.0, 5.0, 4.0, 4.0])
    advantages_BT = torch.tensor([[-2.0, -2.0, -2.0, -2.0, 2.0, 0.0]])
    single = surrogate.clipped_surrogate(x_BT, advantages_BT, lower=0.8, upper=1.3)
    result = surrogate.dual_clipped(single, advantages_BT, limit=3.0)
    assert single.loss_BT[0].tolist() == pytest.approx([1.6, 4.0, 8.0, 10.0, -2.6, 0.0])
    assert result.loss_BT[0].tolist() == pytest.approx([1.6, 4.0, 6.0, 6.0, -2.6, 0.0])
    assert gradient(result.loss_BT, x_BT) == pytest.approx([0.0, 4.0, 0.0, 0.0, 0.0, 0.0])
    assert result.clipped_low_BT[0].tolist() == [True, False, False, False, False, False]
    assert result.clipped_high_BT[0].tolist() == [False, False, True, True, True, False]
