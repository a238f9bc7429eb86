"""Probabilities of draws: by hand, and invariants over random estimates."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from rlkl.data.curriculum.probabilities import (
    interest,
    inverse_gap_kl,
    inverse_gap_square,
    proportional,
    with_floor,
)

RULES = [inverse_gap_kl, inverse_gap_square]
Rule = Callable[[list[float], float], list[float]]


def random_losses(seed: int) -> list[float]:
    chance = random.Random(seed)
    return [chance.choice([0.0, 1.0, chance.random()]) for _ in range(chance.randint(2, 32))]


def test_the_interest_of_a_prompt_by_hand():
    assert [interest(p) for p in (0.0, 0.25, 0.5, 0.75, 1.0)] == [0.0, 0.75, 1.0, 0.75, 0.0]


def test_proportions_by_hand():
    assert proportional([1.0, 3.0]) == [0.25, 0.75]
    assert proportional([0.0, 0.0, 0.0, 0.0]) == [0.25] * 4


def test_the_floor_by_hand():
    assert with_floor([1.0, 0.0], 0.1) == pytest.approx([0.95, 0.05])


def test_the_square_loss_by_hand():
    # 1 / (3 + 10 * 0.2) and 1 / (3 + 10 * 0.7); the best gets the rest
    assert inverse_gap_square([0.5, 0.3, 1.0], 10.0) == pytest.approx([0.2, 0.7, 0.1])


def test_the_kl_loss_by_hand():
    # 0.3 / (0.9 + 10 * 0.2) and 0.3 / (0.9 + 10 * 0.7)
    others = [0.3 / 2.9, 0.3 / 7.9]
    assert inverse_gap_kl([0.5, 0.3, 1.0], 10.0) == pytest.approx([others[0], 1 - sum(others), others[1]])


def test_a_least_loss_of_zero_divides_by_nothing():
    assert inverse_gap_kl([0.0, 0.5, 0.0, 1.0], 10.0) == pytest.approx([0.75, 0.0, 0.25, 0.0])
    assert inverse_gap_kl([0.0, 0.0], 10.0) == [0.5, 0.5]


@pytest.mark.parametrize("rule", RULES)
def test_equal_losses_and_no_gain_have_equal_probabilities(rule: Rule):
    assert rule([0.4] * 5, 100.0) == pytest.approx([0.2] * 5)
    assert rule([0.1, 0.9, 0.5, 0.3], 0.0) == pytest.approx([0.25] * 4)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("seed", range(40))
def test_they_are_a_distribution_whose_best_arm_has_its_share(rule: Rule, seed: int):
    losses = random_losses(seed)
    for gain in (0.0, 1.0, 100.0, 1e9):
        found = rule(losses, gain)
        assert sum(found) == pytest.approx(1.0)
        assert min(found) >= 0
        assert found[losses.index(min(losses))] >= 1 / len(losses) - 1e-12
        floored = with_floor(found, 0.2)
        assert sum(floored) == pytest.approx(1.0)
        assert min(floored) >= 0.2 / len(losses)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("seed", range(10))
def test_a_larger_loss_never_has_a_larger_probability(rule: Rule, seed: int):
    losses = random_losses(seed)
    best = losses.index(min(losses))
    by_loss = [
        p
        for _, p in sorted(
            (loss, -p) for arm, (loss, p) in enumerate(zip(losses, rule(losses, 9.0), strict=True)) if arm != best
        )
    ]
    assert by_loss == sorted(by_loss)


def test_the_kl_loss_leaves_less_to_bad_arms_when_the_best_is_good():
    losses = [0.02, 0.5, 0.9]
    assert all(
        kl < square
        for kl, square in zip(inverse_gap_kl(losses, 20.0)[1:], inverse_gap_square(losses, 20.0)[1:], strict=True)
    )
