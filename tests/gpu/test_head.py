"""Scores of the output head by tiles of the vocabulary, on the GPU against the CPU in float32."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks.head import QUANTITIES, Problem, by_tiles, make_problem

VOCABULARY, TOKENS, HIDDEN = 10_000, 1500, 64
"""More than one chunk of tokens and more than two tiles of ids."""


def on(device: str, dtype: torch.dtype, problem: Problem) -> tuple[float, list[torch.Tensor]]:
    """Return the mean of the scores and the gradients of hidden states and weight."""
    moved = replace(
        problem,
        **{
            name: getattr(problem, name).detach().to(device, dtype)
            for name in ("hidden_NH", "weight_VH", "reference_NH", "reference_VH")
        },
        targets_N=problem.targets_N.to(device),
    )
    inputs = [moved.hidden_NH.requires_grad_(), moved.weight_VH.requires_grad_()]
    loss = by_tiles(moved)
    return loss.item(), [gradient.float().cpu() for gradient in torch.autograd.grad(loss, inputs)]


@pytest.mark.parametrize("quantity", QUANTITIES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 2e-2)])
def test_scores_and_gradients_equal_the_cpu(quantity: str, dtype: torch.dtype, tolerance: float):
    problem = make_problem(quantity, VOCABULARY, TOKENS, torch.float32, hidden=HIDDEN)
    loss, gradients = on("cuda", dtype, problem)
    wanted, wanted_gradients = on("cpu", torch.float32, problem)
    assert loss == pytest.approx(wanted, rel=tolerance)
    for ours, exact in zip(gradients, wanted_gradients, strict=True):
        assert (ours - exact).norm() < tolerance * exact.norm()
