"""Weights of distributionally robust training: by hand, against a numeric maximiser, and in the limits."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rlkl.functional.dro import kl_dro_weights, moving_soft_maximum, soft_maximum

LOSSES_G = torch.tensor([-1.0, -0.25, 0.0, -0.5], dtype=torch.float64)
RATES = (0.1, 0.5, 1.0)


def weights(losses_G: Tensor, *, temperature: float, max_weight: float = 1e9) -> Tensor:
    level = soft_maximum(losses_G, temperature=temperature)
    return kl_dro_weights(losses_G, level, temperature=temperature, max_weight=max_weight)


def test_two_groups_by_hand():
    losses_G = torch.tensor([0.0, math.log(3)], dtype=torch.float64)
    assert float(soft_maximum(losses_G, temperature=1.0)) == pytest.approx(math.log(2))  # (1 + 3) / 2
    assert weights(losses_G, temperature=1.0).tolist() == pytest.approx([0.5, 1.5])


@pytest.mark.parametrize("temperature", [0.1, 0.7, 3.0])
def test_the_closed_form_is_what_a_numeric_maximiser_finds(temperature: float):
    logits_G = torch.zeros(len(LOSSES_G), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits_G], max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-16)

    def objective() -> Tensor:
        weights_G = logits_G.softmax(0) * len(LOSSES_G)
        return (weights_G * LOSSES_G).mean() - temperature * (weights_G * weights_G.log()).mean()

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = -objective()
        loss.backward()
        return loss

    optimizer.step(closure)  # pyright: ignore[reportArgumentType]
    found_G = logits_G.detach().softmax(0) * len(LOSSES_G)
    assert weights(LOSSES_G, temperature=temperature).tolist() == pytest.approx(found_G.tolist(), abs=1e-4)
    assert float(soft_maximum(LOSSES_G, temperature=temperature)) == pytest.approx(
        float(objective().detach()), abs=1e-8
    )


def test_a_large_temperature_gives_equal_weights_and_a_small_one_the_worst_group():
    assert weights(LOSSES_G, temperature=1e9).tolist() == pytest.approx([1.0] * 4)
    assert weights(LOSSES_G, temperature=1e-3).tolist() == pytest.approx([0.0, 0.0, 4.0, 0.0])
    assert float(soft_maximum(LOSSES_G, temperature=1e6)) == pytest.approx(float(LOSSES_G.mean()), abs=1e-6)
    assert float(soft_maximum(LOSSES_G, temperature=1e-4)) == pytest.approx(float(LOSSES_G.max()), abs=1e-3)


def test_a_constant_added_to_all_losses_changes_no_weight():
    shifted = weights(LOSSES_G + 1000.0, temperature=0.5)
    assert shifted.tolist() == pytest.approx(weights(LOSSES_G, temperature=0.5).tolist(), rel=1e-9)


def test_equal_losses_have_weights_of_exactly_one():
    assert weights(torch.full((7,), -0.3, dtype=torch.float64), temperature=0.01).tolist() == [1.0] * 7


def test_weights_are_cut_before_their_mean_is_set_to_one():
    level = torch.tensor(0.0, dtype=torch.float64)
    losses_G = torch.tensor([0.0, math.log(10)], dtype=torch.float64)
    cut_G = kl_dro_weights(losses_G, level, temperature=1.0, max_weight=3.0)  # 1 and 3 of 10
    assert cut_G.tolist() == pytest.approx([0.5, 1.5])


@pytest.mark.parametrize("level", [-1e6, 1e6])
def test_a_level_far_from_the_losses_gives_finite_weights(level: float):
    found_G = kl_dro_weights(LOSSES_G, torch.tensor(level).double(), temperature=0.01, max_weight=5.0)
    assert float(found_G.mean()) == pytest.approx(1.0)
    assert bool((found_G >= 0).all())


def test_the_moving_soft_maximum_by_hand():
    moved = moving_soft_maximum(
        torch.tensor(0.0).double(), torch.tensor(2 * math.log(3)).double(), temperature=2.0, rate=0.25
    )
    assert float(moved) == pytest.approx(2 * math.log(0.75 * 1 + 0.25 * 3))


@pytest.mark.parametrize("rate", RATES)
def test_on_a_stationary_stream_it_stays_near_the_soft_maximum_of_all(rate: float):
    generator = torch.Generator().manual_seed(0)
    stream_SG = -torch.rand(400, 64, generator=generator, dtype=torch.float64)
    level = soft_maximum(stream_SG[0], temperature=0.5)
    for losses_G in stream_SG[1:]:
        level = moving_soft_maximum(level, soft_maximum(losses_G, temperature=0.5), temperature=0.5, rate=rate)
    assert float(level) == pytest.approx(float(soft_maximum(stream_SG.flatten(), temperature=0.5)), abs=0.1)


def test_with_a_rate_of_one_nothing_is_remembered():
    now = torch.tensor(0.3).double()
    moved = moving_soft_maximum(torch.tensor(9.0).double(), now, temperature=0.5, rate=1.0)
    assert float(moved) == pytest.approx(float(now))
