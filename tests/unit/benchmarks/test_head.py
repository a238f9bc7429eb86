"""The benchmark of the output head compares two ways to the same numbers."""

from __future__ import annotations

import pytest
import torch

from benchmarks.head import DTYPES, QUANTITIES, by_chunks, by_tiles, main, make_problem


@pytest.mark.parametrize("quantity", QUANTITIES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_both_ways_give_the_same_loss_and_gradient(quantity: str, dtype: str) -> None:
    problem = make_problem(quantity, 5000, 7, getattr(torch, dtype), hidden=16)
    losses, gradients = [], []
    for way in (by_chunks, by_tiles):
        loss = way(problem)
        losses.append(loss.item())
        gradients.append(torch.autograd.grad(loss, (problem.hidden_NH, problem.weight_VH)))

    tolerance = 1e-5 if dtype == "float32" else 2e-2
    assert losses[0] == pytest.approx(losses[1], rel=tolerance)
    for one, other in zip(*gradients, strict=True):
        assert (one - other).norm() <= tolerance * other.norm()


def test_the_command_prints_a_row(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--vocabulary", "512", "--tokens", "8", "--dtype", "float32", "--quantity", "entropy", "--threads", "1"])
    assert "entropy  float32      512      8 |" in capsys.readouterr().out
