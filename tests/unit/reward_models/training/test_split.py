from __future__ import annotations

import pytest

from reward_models.training.split import split_by_prompt
from rlkl.errors import DataError

PROMPTS = [f"prompt {number // 3}" for number in range(300)]


@pytest.mark.parametrize("parts", [1, 2])
def test_no_prompt_is_in_two_parts_and_no_row_is_lost(parts: int):
    held_out, trained = split_by_prompt(PROMPTS, held_out_fraction=0.1, parts=parts, seed=0)
    everything = [held_out, *trained]
    assert len(trained) == parts
    assert sorted(row for part in everything for row in part) == list(range(300))
    prompts = [{PROMPTS[row] for row in part} for part in everything]
    assert sum(map(len, prompts)) == len(set().union(*prompts)) == 100
    assert all(part == sorted(part) for part in everything)


def test_the_held_out_rows_are_as_many_as_asked_and_halves_are_equal():
    held_out, (first, second) = split_by_prompt(PROMPTS, held_out_fraction=0.1, parts=2, seed=0)
    assert len(held_out) == 30
    assert (len(first), len(second)) == (135, 135)


def test_halves_differ_by_no_more_than_the_largest_prompt():
    prompts = ["long"] * 40 + [f"prompt {number}" for number in range(60)]
    for seed in range(5):
        held_out, (first, second) = split_by_prompt(prompts, held_out_fraction=0.05, parts=2, seed=seed)
        assert abs(len(first) - len(second)) <= 40
        assert 5 <= len(held_out) <= 5 + 40


def test_the_seed_decides_who_is_held_out():
    def held_out(seed: int) -> list[int]:
        return split_by_prompt(PROMPTS, held_out_fraction=0.1, parts=1, seed=seed)[0]

    assert held_out(0) == held_out(0)
    assert held_out(0) != held_out(1)


def test_every_part_gets_a_prompt_even_where_much_is_held_out():
    held_out, trained = split_by_prompt(["a", "b", "c"], held_out_fraction=0.99, parts=2, seed=0)
    assert [len(part) for part in (held_out, *trained)] == [1, 1, 1]


def test_too_few_prompts_are_refused():
    with pytest.raises(DataError, match=r"2 different prompts, but .* 3 parts"):
        split_by_prompt(["a", "a", "b"], held_out_fraction=0.1, parts=2, seed=0)
