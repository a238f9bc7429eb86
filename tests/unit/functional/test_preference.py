"""Numbers worked out by hand or with an independent program; V = 3, two tokens each, beta = 0.5."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rlkl.functional.kl import exact_kl
from rlkl.functional.preference import (
    TokenMasks,
    activation_mask,
    implicit_rewards,
    pair_rows,
    preference_losses,
    zero_fraction,
)

BETA = 0.5
REFERENCE_BTV = torch.tensor([[[0, 0, 0], [1, 0, 0]], [[0, 0, 0], [0, 0, 1]]], dtype=torch.float64)
POLICY_BTV = torch.tensor([[[0.5, 0, 0], [1, 1, 0]], [[0.5, 0, 0], [0, 0, -1]]], dtype=torch.float64)
TOKENS_BT = torch.tensor([[0, 1], [1, 2]])
ONES, ZEROS = [[1.0, 1.0], [1.0, 1.0]], [[0.0, 0.0], [0.0, 0.0]]
REWARD, KL = [[2.0, 0.5], [0.0, 1.5]], [[1.0, 0.0], [0.5, 1.0]]


def tensor(values: list[list[float]]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def log_ratio_and_kl(policy_BTV: Tensor) -> tuple[Tensor, Tensor]:
    policy_BTV, reference_BTV = policy_BTV.log_softmax(-1), REFERENCE_BTV.log_softmax(-1)
    index = TOKENS_BT.unsqueeze(-1)
    log_ratio_BT = (policy_BTV - reference_BTV).gather(-1, index).squeeze(-1)
    return log_ratio_BT, exact_kl(reference_BTV, policy_BTV)


def margin_of(policy_BTV: Tensor, masks: TokenMasks, beta: float = BETA) -> Tensor:
    """Row 0 is preferred to row 1."""
    rewards_B = implicit_rewards(*log_ratio_and_kl(policy_BTV), masks, beta=beta)
    return (rewards_B[0] - rewards_B[1])[None]


def test_the_worked_example_has_the_log_ratios_and_kls_that_follow() -> None:
    log_ratio_BT, kl_BT = log_ratio_and_kl(POLICY_BTV)
    torch.testing.assert_close(log_ratio_BT, tensor([[0.304236, 0.689450], [-0.195764, -1.310550]]), atol=1e-6, rtol=0)
    torch.testing.assert_close(kl_BT, tensor([[0.029098, 0.098609], [0.029098, 0.462784]]), atol=1e-6, rtol=0)
    swapped_BT = exact_kl(POLICY_BTV.log_softmax(-1), REFERENCE_BTV.log_softmax(-1))
    assert (swapped_BT - kl_BT).abs().max() > 0.05  # the order of the arguments matters


@pytest.mark.parametrize(
    ("reward", "kl", "margin", "loss"),
    [
        (ONES, ONES, 1.067912, 0.295446),
        (ONES, ZEROS, 1.25, 0.251929),
        (ZEROS, ONES, -0.182088, 0.788330),
        (ZEROS, ZEROS, 0.0, math.log(2)),
        (REWARD, KL, 1.235393, 0.255201),
        (REWARD, REWARD, 1.166173, 0.271215),
    ],
    ids=["TDPO1", "DPO", "KL alone", "nothing", "independent", "common"],
)
def test_golden_margins_and_losses(
    reward: list[list[float]], kl: list[list[float]], margin: float, loss: float
) -> None:
    ours = margin_of(POLICY_BTV, TokenMasks(tensor(reward), tensor(kl)))
    assert ours.item() == pytest.approx(margin, abs=1e-6)
    assert preference_losses(ours).item() == pytest.approx(loss, abs=1e-6)


def test_golden_gradients_of_logits_and_masks() -> None:
    policy_BTV = POLICY_BTV.clone().requires_grad_()
    masks = TokenMasks(tensor(REWARD).requires_grad_(), tensor(KL).requires_grad_())
    preference_losses(margin_of(policy_BTV, masks)).sum().backward()
    wanted_BTV = [
        [[-0.136811, 0.068405, 0.068405], [0.023781, -0.032529, 0.008748]],
        [[0.006674, -0.003337, -0.003337], [-0.047649, -0.047649, 0.095299]],
    ]
    assert policy_BTV.grad is not None
    assert masks.reward_BT.grad is not None
    assert masks.kl_BT.grad is not None
    torch.testing.assert_close(policy_BTV.grad, torch.tensor(wanted_BTV, dtype=torch.float64), atol=1e-6, rtol=0)
    wanted_reward_BT = tensor([[-0.034263, -0.077645], [-0.022047, -0.147593]])
    torch.testing.assert_close(masks.reward_BT.grad, wanted_reward_BT, atol=1e-6, rtol=0)
    wanted_kl_BT = tensor([[-0.003277, -0.011105], [0.003277, 0.052118]])
    torch.testing.assert_close(masks.kl_BT.grad, wanted_kl_BT, atol=1e-6, rtol=0)


def test_under_a_common_mask_the_policys_own_probabilities_cancel() -> None:
    policy_BTV = POLICY_BTV.clone().requires_grad_()
    mask_BT = tensor(REWARD)
    margin = margin_of(policy_BTV, TokenMasks(mask_BT, mask_BT))
    preference_losses(margin).sum().backward()
    one_hot_BTV = torch.nn.functional.one_hot(TOKENS_BT, 3)
    sign_B11 = torch.tensor([-1.0, 1.0], dtype=torch.float64)[:, None, None]
    slope = BETA * torch.sigmoid(-margin.detach())
    wanted_BTV = sign_B11 * slope * mask_BT.unsqueeze(-1) * (one_hot_BTV - REFERENCE_BTV.softmax(-1))
    torch.testing.assert_close(policy_BTV.grad, wanted_BTV)


def test_zero_masks_stop_the_policy_but_would_pull_at_the_masks() -> None:
    policy_BTV = POLICY_BTV.clone().requires_grad_()
    masks = TokenMasks(tensor(ZEROS).requires_grad_(), tensor(ZEROS))
    loss = preference_losses(margin_of(policy_BTV, masks)).sum()
    loss.backward()
    assert loss.item() == math.log(2)
    assert policy_BTV.grad is not None
    assert not policy_BTV.grad.any()
    log_ratio_BT, _ = log_ratio_and_kl(POLICY_BTV)
    wanted_BT = torch.tensor([[-1.0], [1.0]], dtype=torch.float64) * BETA * 0.5 * log_ratio_BT
    torch.testing.assert_close(masks.reward_BT.grad, wanted_BT)


def test_at_the_reference_only_the_reward_mask_moves_the_policy() -> None:
    policy_BTV = REFERENCE_BTV.clone().requires_grad_()
    masks = TokenMasks(tensor(REWARD).requires_grad_(), tensor(KL).requires_grad_())
    loss = preference_losses(margin_of(policy_BTV, masks)).sum()
    loss.backward()
    alone_BTV = REFERENCE_BTV.clone().requires_grad_()
    preference_losses(margin_of(alone_BTV, TokenMasks(tensor(REWARD), tensor(ZEROS)))).sum().backward()
    assert loss.item() == pytest.approx(math.log(2), abs=1e-15)
    assert masks.reward_BT.grad is not None
    assert masks.reward_BT.grad.abs().max() < 1e-15
    torch.testing.assert_close(policy_BTV.grad, alone_BTV.grad)


def test_scaling_both_masks_is_scaling_beta_and_a_zero_is_a_deleted_token() -> None:
    masks = TokenMasks(tensor(REWARD), tensor(KL))
    scaled = margin_of(POLICY_BTV, TokenMasks(3 * masks.reward_BT, 3 * masks.kl_BT))
    torch.testing.assert_close(scaled, margin_of(POLICY_BTV, masks, beta=3 * BETA))
    first = TokenMasks(tensor([[1.0, 0.0], [1.0, 0.0]]), tensor([[1.0, 0.0], [1.0, 0.0]]))
    log_ratio_BT, kl_BT = (x_BT[:, :1] for x_BT in log_ratio_and_kl(POLICY_BTV))
    short_B = implicit_rewards(log_ratio_BT, kl_BT, TokenMasks(*(mask_BT[:, :1] for mask_BT in first)), beta=BETA)
    torch.testing.assert_close(margin_of(POLICY_BTV, first), (short_B[0] - short_B[1])[None])


def test_what_both_responses_begin_with_cancels() -> None:
    """Same state, same token: the same log-ratio, KL and mask. Masks follow the state, so this is what they give."""
    log_ratio_BT = tensor([[0.7, 0.2], [0.7, -0.4]]).requires_grad_()
    shared_BT = tensor([[3.0, 1.0], [3.0, 1.0]])
    rewards_B = implicit_rewards(log_ratio_BT, log_ratio_BT**2, TokenMasks(shared_BT, shared_BT), beta=BETA)
    margin = rewards_B[0] - rewards_B[1]
    assert margin.item() == pytest.approx(BETA * (0.2 + 0.04 + 0.4 - 0.16))
    preference_losses(margin[None]).sum().backward()
    assert log_ratio_BT.grad is not None
    assert log_ratio_BT.grad[:, 0].sum().item() == 0


def test_pairs_are_found_in_any_order_of_rows() -> None:
    pair_B = torch.tensor([7, -1, 2, 2, 7])
    chosen_B = torch.tensor([False, True, True, False, True])
    chosen_P, rejected_P = pair_rows(pair_B, (~chosen_B).long())
    assert (chosen_P.tolist(), rejected_P.tolist()) == ([2, 4], [3, 0])


def test_half_a_pair_is_refused() -> None:
    with pytest.raises(AssertionError, match="each pair has one preferred"):
        pair_rows(torch.tensor([0, 0, 1]), torch.tensor([True, False, True]))


def test_activation_mask_stretches_each_layer_over_the_response() -> None:
    activation_BTL = torch.tensor([[9.0, 3, 1, 2, 5, -7]]).unsqueeze(-1)
    response_BT = torch.tensor([[False, True, True, True, True, False]])
    torch.testing.assert_close(activation_mask(activation_BTL, response_BT), torch.tensor([[0, 0.5, 0, 0.25, 1, 0]]))
    two_BTL = torch.cat([activation_BTL, -3 * activation_BTL + 11], dim=-1)  # upside down: 1 - mask
    wanted_BT = torch.tensor([[0, 0.5, 0.5, 0.5, 0.5, 0]])
    torch.testing.assert_close(activation_mask(two_BTL, response_BT), wanted_BT)


def test_activation_mask_does_not_see_scale_shift_or_padding() -> None:
    generator = torch.Generator().manual_seed(0)
    activation_BTL = torch.randn(3, 6, 4, generator=generator)
    response_BT = torch.arange(6) >= torch.tensor([[1], [2], [4]])
    mask_BT = activation_mask(activation_BTL, response_BT)
    moved_BTL = torch.where(response_BT.unsqueeze(-1), 5 * activation_BTL + 2, float("nan"))
    torch.testing.assert_close(activation_mask(moved_BTL, response_BT), mask_BT)
    one_layer_BT = activation_mask(activation_BTL[..., :1], response_BT)
    inside = [row[mask] for row, mask in zip(one_layer_BT, response_BT, strict=True)]
    assert all((values.amin(), values.amax()) == (0, 1) for values in inside)


@pytest.mark.parametrize("response", [[False, True, False], [False, True, True], [False, False, False]])
def test_a_layer_that_does_not_vary_weighs_all_tokens_alike(response: list[bool]) -> None:
    response_BT = torch.tensor([response])
    assert torch.equal(activation_mask(torch.full((1, 3, 2), 0.3), response_BT), response_BT.float())


def test_zero_fraction_counts_response_tokens_only() -> None:
    mask_BT = torch.tensor([[0, 2, 0, 0.5], [1, 1, 0, 0]])
    response_BT = torch.tensor([[True, True, True, False], [False, False, False, False]])
    assert zero_fraction(mask_BT, response_BT).tolist() == pytest.approx([2 / 3, 0])
