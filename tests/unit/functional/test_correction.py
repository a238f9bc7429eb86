"""Weights for the difference of sampler and learner, against numbers by hand."""

import math

import pytest
import torch
from torch import Tensor

from rlkl.functional.correction import (
    CORRECTIONS,
    Bounds,
    correction_metrics,
    sampler_log_ratio,
    sequence_mask,
    token_mask,
    token_truncate,
)
from rlkl.updates.base_settings import CORRECTION_BOUNDS

RESPONSE = torch.tensor([[False, True, True, True], [True, True, False, False]])


def logs(*rows: list[float]) -> Tensor:
    return torch.where(RESPONSE, torch.tensor(rows).log(), 0.0)


RATIOS = logs([9.0, 0.25, 1.0, 4.0], [1.5, 1.5, 9.0, 9.0])


def test_truncation_limits_each_ratio_from_above():
    found = token_truncate(RATIOS, RESPONSE, Bounds(0.0, 2.0))
    torch.testing.assert_close(found.weight_BT, torch.tensor([[1.0, 0.25, 1.0, 2.0], [1.5, 1.5, 1.0, 1.0]]))
    assert found.cut_BT.tolist() == [[False, False, False, True], [False] * 4]


def test_a_token_outside_the_bounds_is_left_out():
    found = token_mask(RATIOS, RESPONSE, Bounds(0.5, 3.0))
    torch.testing.assert_close(found.weight_BT, torch.tensor([[1.0, 0.0, 1.0, 0.0], [1.5, 1.5, 1.0, 1.0]]))
    assert found.cut_BT.tolist() == [[False, True, False, True], [False] * 4]


def test_a_sequence_is_left_out_by_its_geometric_mean():
    """The first row: (0.25 * 1 * 4) ** (1 / 3) = 1. The second: 1.5."""
    found = sequence_mask(RATIOS, RESPONSE, Bounds(0.99, 1.01))
    torch.testing.assert_close(found.weight_BT, torch.tensor([[1.0, 0.25, 1.0, 4.0], [0.0, 0.0, 1.0, 1.0]]))
    assert found.cut_BT.tolist() == [[False] * 4, [True, True, False, False]]


def test_the_mean_does_not_depend_on_the_length():
    """A product of 200 ratios of 1.004 is 2.2; their geometric mean is within the bounds."""
    ratio_BT = torch.full((1, 200), math.log(1.004))
    response_BT = torch.ones(1, 200, dtype=torch.bool)
    assert not sequence_mask(ratio_BT, response_BT, Bounds(0.99, 1.01)).cut_BT.any()


@pytest.mark.parametrize("name", CORRECTIONS)
def test_equal_policies_have_weight_1(name: str):
    found = CORRECTIONS[name](torch.zeros(2, 4), RESPONSE, Bounds(*CORRECTION_BOUNDS[name]))
    assert torch.equal(found.weight_BT, torch.ones(2, 4))
    assert not found.cut_BT.any()


def test_the_ratio_is_bounded_and_has_no_gradient():
    proximal_BT = torch.tensor([[-1.0, -2.0, -50.0, -0.5]], requires_grad=True)
    sampler_BT = torch.tensor([[-3.0, -2.5, -1.0, -80.0]])
    found = sampler_log_ratio(proximal_BT, sampler_BT, torch.tensor([[False, True, True, True]]))
    assert found.tolist() == [[0.0, 0.5, -20.0, 20.0]]
    assert not found.requires_grad


def test_a_row_that_nobody_sampled_has_weight_1():
    proximal_BT = torch.tensor([[-1.0, -2.0], [-1.0, -2.0]])
    sampler_BT = torch.tensor([[0.0, 0.0], [0.0, -2.5]])
    found = sampler_log_ratio(proximal_BT, sampler_BT, torch.ones(2, 2, dtype=torch.bool))
    assert found.tolist() == [[0.0, 0.0], [-1.0, 0.5]]


def test_metrics_are_those_of_response_tokens():
    found = correction_metrics(token_truncate(RATIOS, RESPONSE, Bounds(0.0, 2.0)), RESPONSE)
    weights = [0.25, 1.0, 2.0, 1.5, 1.5]
    assert found["correction/weight_mean"] == pytest.approx((0.25 + 1 + 2 + 1.5 + 1.5) / 5)
    assert found["correction/weight_max"] == 2.0
    assert found["correction/cut_fraction"] == pytest.approx(0.2)
    assert found["rollout/ess"] == pytest.approx(sum(weights) ** 2 / sum(w * w for w in weights) / 5, rel=1e-6)


def test_without_a_response_there_is_no_metric():
    nothing = torch.zeros(1, 2, dtype=torch.bool)
    assert correction_metrics(token_truncate(torch.zeros(1, 2), nothing, Bounds(0, 2)), nothing) == {}


def test_if_all_tokens_are_cut_no_sample_is_effective():
    found = correction_metrics(token_mask(RATIOS, RESPONSE, Bounds(100.0, 200.0)), RESPONSE)
    assert found["rollout/ess"] == found["correction/weight_max"] == 0.0
    assert found["correction/cut_fraction"] == 1.0
