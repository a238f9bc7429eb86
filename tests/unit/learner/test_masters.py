"""Float32 copies of bfloat16 parameters."""

from __future__ import annotations

import torch
from torch import nn

from rlkl.learner.masters import Masters


def parameter(*values: float, dtype: torch.dtype = torch.bfloat16) -> nn.Parameter:
    return nn.Parameter(torch.tensor(values, dtype=dtype))


def test_a_float32_parameter_is_moved_itself():
    weight = parameter(1.0, dtype=torch.float32)
    assert Masters({"weight": weight}).parameters["weight"] is weight


def test_gradients_of_several_passes_add_up_in_float32():
    """In bfloat16, 256 + 1 is 256."""
    weight = parameter(2.0)
    master = Masters({"weight": weight}).parameters["weight"]
    for factor in (256.0, 1.0, 1.0, 1.0):
        (weight * factor).sum().backward()
    assert weight.grad is None
    assert master.grad is not None
    assert master.grad.item() == 259.0


def test_steps_too_small_for_bfloat16_arrive_together():
    weight = parameter(1.0)
    masters = Masters({"weight": weight})
    optimizer = torch.optim.SGD(masters.parameters.values(), lr=8e-4)
    seen = []
    for _ in range(4):
        optimizer.zero_grad()
        weight.sum().backward()
        optimizer.step()
        masters.write_back()
        seen.append(weight.item())
    assert seen == [1.0, 1.0, 0.99609375, 0.99609375]


def test_released_masters_hold_no_memory():
    weight, plain = parameter(1.0), parameter(3.0, dtype=torch.float32)
    masters = Masters({"weight": weight, "plain": plain})
    (weight.sum() + plain.sum()).backward()
    masters.release()
    assert weight.item() == 1.0
    assert plain.item() == 3.0
    assert masters.parameters["weight"].numel() == 0
    assert plain.grad is None
