"""Group-relative advantages by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from rlkl.functional.advantages import group_mean_advantages, group_std_advantages, leave_one_out_advantages

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
