"""Value losses by hand."""

from __future__ import annotations

import pytest
import torch

from rlkl.functional.values import clipped_value_loss, explained_variance, squared_value_loss

# Start 0, return 1, clip 0.2. Values that moved: not, a little, past the clip, past the return, away, far away.
VALUES_BT = torch.tensor([[0.0, 0.1, 0.5, 1.4, -0.1, -0.5]])
START_BT = torch.zeros(1, 6)
RETURNS_BT = torch.ones(1, 6)


def test_clipped_value_loss_takes_the_larger_loss() -> None:
    values_BT = VALUES_BT.clone().requires_grad_()
    value = clipped_value_loss(values_BT, START_BT, RETURNS_BT, clip=0.2)
    (gradient_BT,) = torch.autograd.grad(value.loss_BT.sum(), values_BT)
    # Held at 0.2 the loss is 0.8^2 / 2; it exceeds the free loss where the value moved towards the return.
    assert value.loss_BT[0].tolist() == pytest.approx([0.5, 0.405, 0.32, 0.32, 0.605, 1.125])
    assert gradient_BT[0].tolist() == pytest.approx([-1.0, -0.9, 0.0, 0.0, -1.1, -1.5])
    assert value.clipped_BT[0].tolist() == [False, False, True, True, False, False]


def test_values_that_moved_by_less_than_the_clip_never_count_as_clipped() -> None:
    """Start plus the move is not the value to the last bit, so either of the two losses may be the larger one."""
    generator = torch.Generator().manual_seed(0)
    start_BT, values_BT, returns_BT = (
        scale * torch.randn(8, 640, generator=generator).clamp(-1, 1) for scale in (1e-1, 1e-4, 1e-4)
    )
    held_BT = start_BT + (values_BT - start_BT)
    assert ((held_BT - returns_BT).square() > (values_BT - returns_BT).square()).float().mean() > 0.4

    assert not clipped_value_loss(values_BT, start_BT, returns_BT, clip=0.2).clipped_BT.any()


def test_squared_value_loss_has_no_clip() -> None:
    value = squared_value_loss(VALUES_BT, RETURNS_BT)
    assert value.loss_BT[0].tolist() == pytest.approx([0.5, 0.405, 0.125, 0.08, 0.605, 1.125])
    assert not value.clipped_BT.any()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1.0, 2.0, 3.0], 1.0),
        ([5.0, 5.0, 5.0], 0.0),
        # Residuals 0, 0, 1.5 with variance 0.5, returns with variance 2 / 3.
        ([1.0, 2.0, 1.5], 0.25),
        # A constant offset is not held against the critic; the opposite of the returns is.
        ([11.0, 12.0, 13.0], 1.0),
        ([3.0, 2.0, 1.0], -3.0),
    ],
)
def test_explained_variance(values: list[float], expected: float) -> None:
    mask_BT = torch.tensor([[False, True, True, True]])
    ours = explained_variance(torch.tensor([[99.0, *values]]), torch.tensor([[-7.0, 1.0, 2.0, 3.0]]), mask_BT)
    assert ours == pytest.approx(expected)


def test_returns_that_do_not_vary_leave_nothing_to_explain() -> None:
    mask_BT = torch.ones(1, 6, dtype=torch.bool)
    assert explained_variance(VALUES_BT, RETURNS_BT, mask_BT) == 0.0
    assert explained_variance(VALUES_BT, RETURNS_BT, ~mask_BT) == 0.0
