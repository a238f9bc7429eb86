"""Lengths of completions: means, limits, and that they depend on the draw alone."""

from __future__ import annotations

from statistics import fmean, pstdev

import pytest

from rlkl.costs.lengths import Empirical, Lengths, Lognormal, Recorded, Uniform
from rlkl.errors import InputError

KINDS: list[Lengths] = [
    Lognormal(mean=100, longest=300),
    Uniform(shortest=5, longest=300),
    Empirical(values=(7, 70, 700), longest=300),
    Recorded(groups=((3, 4), (5, 6))),
]


@pytest.mark.parametrize("lengths", KINDS, ids=lambda one: type(one).__name__)
def test_lengths_of_a_draw_depend_on_draw_and_seed_alone(lengths: Lengths):
    first = [list(lengths.of_group(draw, 8, 1)) for draw in range(20)]
    again = [list(lengths.of_group(draw, 8, 1)) for draw in reversed(range(20))][::-1]
    assert first == again
    assert all(1 <= length <= 300 for group in first for length in group)
    assert all(len(group) == 8 for group in first)


@pytest.mark.parametrize("lengths", KINDS[:3], ids=lambda one: type(one).__name__)
def test_another_draw_or_seed_has_other_lengths(lengths: Lengths):
    drawn = [tuple(lengths.of_group(draw, 50, seed)) for draw in range(3) for seed in range(3)]
    assert len(set(drawn)) == len(drawn)


@pytest.mark.parametrize(("mean", "longest"), [(20, 1000), (100, 200), (190, 200)])
def test_the_mean_after_the_cut_is_the_one_asked_for(mean: float, longest: int):
    drawn = Lognormal(mean=mean, longest=longest).of_group(0, 20_000, 0)
    assert fmean(drawn) == pytest.approx(mean, rel=0.03)
    assert max(drawn) <= longest


def test_a_larger_spread_has_a_longer_tail():
    narrow, wide = (Lognormal(mean=100, longest=10_000, spread=spread).of_group(0, 5000, 0) for spread in (0.2, 1.0))
    assert pstdev(narrow) < pstdev(wide) / 3
    assert max(narrow) < max(wide) / 5


def test_no_spread_is_one_length():
    assert set(Lognormal(mean=50, longest=100, spread=0).of_group(3, 10, 0)) == {50}


def test_a_mean_above_the_longest_length_is_refused():
    with pytest.raises(InputError, match="expected 1 to 100, the longest one"):
        Lognormal(mean=101, longest=100)


def test_uniform_lengths_reach_both_ends():
    assert set(Uniform(shortest=2, longest=4).of_group(0, 100, 0)) == {2, 3, 4}


def test_measured_lengths_are_drawn_and_cut():
    assert set(Empirical(values=(7, 70, 700), longest=300).of_group(0, 100, 0)) == {7, 70, 300}


def test_recorded_groups_come_in_their_order_and_again():
    recorded = Recorded(groups=((3, 4), (5, 0)))
    assert [list(recorded.of_group(draw, 2, 9)) for draw in range(3)] == [[3, 4], [5, 1], [3, 4]]
