"""Aggregation weights by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from rlkl.batch import Denominators
from rlkl.functional import reduce

# Rows of 1, 3 and 0 response tokens after a prompt of one.
RESPONSE_BT = torch.tensor([[0, 1, 0, 0], [0, 1, 1, 1], [0, 0, 0, 0]], dtype=torch.bool)
DENOMINATORS = Denominators(sequences=2, tokens=4, completion_limit=10)


@pytest.mark.parametrize(
    ("weights", "short", "long"),
    [
        (reduce.sequence_mean_weights, 1 / 2, 1 / 6),
        (reduce.token_mean_weights, 1 / 4, 1 / 4),
        (reduce.sequence_sum_weights, 1 / 2, 1 / 2),
        (reduce.sequence_sum_over_limit_weights, 1 / 20, 1 / 20),
    ],
)
def test_weights(weights: Callable[[Tensor, Denominators], Tensor], short: float, long: float) -> None:
    expected_BT = torch.tensor([[0, short, 0, 0], [0, long, long, long], [0, 0, 0, 0]])
    torch.testing.assert_close(weights(RESPONSE_BT, DENOMINATORS), expected_BT)


def test_masked_stops_nan_in_value_and_gradient() -> None:
    x_BT = torch.full(RESPONSE_BT.shape, float("nan"))
    x_BT[RESPONSE_BT] = 2.0
    x_BT.requires_grad_()
    y_BT = reduce.masked(x_BT, RESPONSE_BT)
    assert torch.equal(y_BT, 2.0 * RESPONSE_BT)
    y_BT.square().sum().backward()
    assert x_BT.grad is not None
    assert torch.equal(x_BT.grad, 4.0 * RESPONSE_BT)
