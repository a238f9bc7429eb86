"""Group-relative advantages by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from rlkl.functional.advantages import (
    generalized_advantages,
    group_mean_advantages,
    group_std_advantages,
    leave_one_out_advantages,
    whitened,
)

Advantages = Callable[[Tensor, Tensor], Tensor]
ALL = [group_mean_advantages, group_std_advantages, leave_one_out_advantages]

# Two groups, interleaved: rewards 1, 0, 0, 3 in group 7 and 2, 4 in group 2.
REWARDS_B = torch.tensor([1.0, 2.0, 0.0, 0.0, 4.0, 3.0])
GROUP_B = torch.tensor([7, 2, 7, 7, 2, 7])


def test_group_mean() -> None:
    assert group_mean_advantages(REWARDS_B, GROUP_B).tolist() == [0.0, -1.0, -1.0, -1.0, 1.0, 2.0]


def test_group_std() -> None:
    # Squared deviations of group 7 sum to 0 + 1 + 1 + 4 = 6, over n - 1 = 3: variance 2. Group 2: 1 + 1 over 1: 2.
    scale = 1 / (math.sqrt(2) + 1e-4)
    expected = [0.0, -scale, -scale, -scale, scale, 2 * scale]
    assert group_std_advantages(REWARDS_B, GROUP_B).tolist() == pytest.approx(expected)


def test_leave_one_out() -> None:
    # Group 7: 1 - (0 + 0 + 3) / 3, 0 - (1 + 0 + 3) / 3 twice, 3 - (1 + 0 + 0) / 3. Group 2: 2 - 4 and 4 - 2.
    expected = [0.0, -2.0, -4 / 3, -4 / 3, 2.0, 8 / 3]
    assert leave_one_out_advantages(REWARDS_B, GROUP_B).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("advantages", ALL)
def test_equal_rewards_give_exactly_zero(advantages: Advantages) -> None:
    # 0.1 is not exact in binary, and the float32 mean of seven 0.1 is not 0.1.
    assert advantages(torch.full((7,), 0.1), torch.zeros(7, dtype=torch.int64)).tolist() == [0.0] * 7


@pytest.mark.parametrize("advantages", ALL)
def test_a_group_of_one_gets_zero(advantages: Advantages) -> None:
    assert advantages(torch.tensor([5.0, -3.0]), torch.tensor([0, 1])).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("advantages", ALL)
def test_adding_a_constant_to_the_rewards_changes_nothing(advantages: Advantages) -> None:
    torch.testing.assert_close(advantages(REWARDS_B + 8, GROUP_B), advantages(REWARDS_B, GROUP_B))


def test_a_spread_of_rounding_noise_stays_small() -> None:
    rewards_B = torch.tensor([1.0, 1.0 + 2**-23])
    assert group_std_advantages(rewards_B, torch.tensor([0, 0])).abs().max() < 1e-3


# A prompt token, three response tokens that earn 0, 0 and 1, and padding. Values 0.5, 0.6 and 0.7.
RESPONSE_BT = torch.tensor([[False, True, True, True, False]])
EARNED_BT = torch.tensor([[0.0, 0.0, 0.0, 1.0, 0.0]])
VALUES_BT = torch.tensor([[0.0, 0.5, 0.6, 0.7, 0.0]])


@pytest.mark.parametrize(
    ("discount", "gae_lambda", "expected"),
    [
        # Residuals with discount 0.9: 0.54 - 0.5 = 0.04, 0.63 - 0.6 = 0.03, 1 - 0.7 = 0.3.
        (0.9, 0.0, [0.04, 0.03, 0.3]),
        # 0.03 + 0.72 * 0.3 = 0.246 and 0.04 + 0.72 * 0.246 = 0.21712.
        (0.9, 0.8, [0.21712, 0.246, 0.3]),
        # Discounted return minus value: 0.81 - 0.5, 0.9 - 0.6, 1 - 0.7.
        (0.9, 1.0, [0.31, 0.3, 0.3]),
        (1.0, 1.0, [0.5, 0.4, 0.3]),
    ],
)
def test_generalized_advantages(discount: float, gae_lambda: float, expected: list[float]) -> None:
    ours_BT = generalized_advantages(EARNED_BT, VALUES_BT, RESPONSE_BT, discount=discount, gae_lambda=gae_lambda)
    assert ours_BT[0].tolist() == pytest.approx([0.0, *expected, 0.0])


def test_generalized_advantages_step_over_tokens_between_two_parts_of_a_response() -> None:
    holed_BT = torch.tensor([[True, False, True, False, False, True]])
    wide_BT, values_BT = torch.full((1, 6), 9.0), torch.full((1, 6), 9.0)
    wide_BT[holed_BT], values_BT[holed_BT] = EARNED_BT[RESPONSE_BT], VALUES_BT[RESPONSE_BT]
    ours_BT = generalized_advantages(wide_BT, values_BT, holed_BT, discount=0.9, gae_lambda=0.8)
    assert ours_BT[0].tolist() == pytest.approx([0.21712, 0, 0.246, 0, 0, 0.3])


def test_generalized_advantages_of_an_empty_response_are_zero() -> None:
    none_BT = torch.zeros_like(RESPONSE_BT)
    assert not generalized_advantages(EARNED_BT, VALUES_BT, none_BT, discount=1.0, gae_lambda=1.0).any()


def test_whitened_over_all_response_tokens() -> None:
    # Values 1, 2, 3 and 6 with mean 3: squared deviations 4, 1, 0, 9 over 4 give a variance of 3.5.
    x_BT = torch.tensor([[1.0, 2.0, 50.0], [3.0, 6.0, -7.0]])
    response_BT = torch.tensor([[True, True, False], [True, True, False]])
    scale = 1 / math.sqrt(3.5)
    expected = [-2 * scale, -scale, 0.0, 0.0, 3 * scale, 0.0]
    assert whitened(x_BT, response_BT).flatten().tolist() == pytest.approx(expected)


def test_equal_values_are_whitened_to_exactly_zero() -> None:
    response_BT = torch.ones(3, 7, dtype=torch.bool)
    assert not whitened(torch.full((3, 7), 0.1), response_BT).any()
    assert not whitened(torch.full((3, 7), 0.1), ~response_BT).any()
