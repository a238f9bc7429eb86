"""An optimizer whose state is in host memory between steps: the same steps, and the memory that it frees."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rlkl.learner.optimizers import HostedState, build_optimizer
from rlkl.recipe import LearnerSection


def steps(optimizer_name: str, *, hosted: bool) -> tuple[torch.Tensor, int]:
    """Make three steps of 4 million parameters; return them, and the bytes on the GPU beside parameter and gradient."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    part = nn.Parameter(torch.zeros(4096, 1024, device="cuda"))
    generator = torch.Generator().manual_seed(0)
    optimizer = build_optimizer({"policy.w": part}, LearnerSection.model_validate({"optimizer": optimizer_name}), None)
    state = HostedState(optimizer)
    for _ in range(3):
        part.grad = torch.randn(4096, 1024, generator=generator).cuda()
        (state if hosted else optimizer).step()
    held = torch.cuda.memory_allocated() - before - 2 * part.numel() * 4
    return part.detach().cpu(), held


@pytest.mark.parametrize(("name", "bytes_each"), [("adamw", 8.0), ("adamw_8bit", 2.03125)])
def test_the_same_steps_and_no_state_on_the_gpu(name: str, bytes_each: float):
    if name == "adamw_8bit":
        pytest.importorskip("bitsandbytes")
    plain, held = steps(name, hosted=False)
    moved, left = steps(name, hosted=True)
    assert torch.equal(plain, moved)
    assert held == pytest.approx(bytes_each * plain.numel(), rel=0.02)
    assert left < 0.02 * held
