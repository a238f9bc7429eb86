"""Answers are scored by reasoning-gym's own verifiers."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest
from reasoning_gym import create_dataset

from reward_models import ReasoningGym
from rlkl.errors import RewardError, RewardInputError


def entry_of(task: str, number: int = 0) -> dict[str, Any]:
    return create_dataset(task, size=3, seed=1)[number]


def score(entry: Any, completion: str, **settings: str) -> float:
    reward = ReasoningGym(**settings)
    reward.setup()
    return reward(completion=completion, entry=entry)


@pytest.mark.parametrize("task", ["gcd", "lcm", "fraction_simplification", "spell_backward", "chain_sum", "maze"])
def test_the_right_answer_scores_as_the_task_scores_it(task: str):
    entry = entry_of(task)
    right = score(json.dumps(entry), f"I think so. <answer> {entry['answer']} </answer>")
    assert right == create_dataset(task, size=3, seed=1).score_answer(answer=entry["answer"], entry=entry) == 1


def test_the_last_tagged_answer_counts():
    entry = entry_of("gcd")
    assert score(json.dumps(entry), f"<answer>x</answer> no: <answer>{entry['answer']}</answer>") == 1
    assert score(json.dumps(entry), f"<answer>{entry['answer']}</answer> no: <answer>x</answer>") == 0


def test_a_completion_without_an_answer_scores_0():
    entry = entry_of("fraction_simplification")
    assert score(json.dumps(entry), entry["answer"]) == 0
    assert score(json.dumps(entry), entry["answer"], extract="whole") == 1


def test_partial_scores_are_kept():
    entry = entry_of("letter_counting")
    wrong = str(int(entry["answer"]) + 1)
    expected = create_dataset("letter_counting", size=3, seed=1).score_answer(answer=wrong, entry=entry)
    assert score(json.dumps(entry), f"<answer>{wrong}</answer>") == expected


def test_an_answer_that_the_verifier_cannot_read_scores_0():
    entry = entry_of("prime_factorization")
    with pytest.raises(ValueError, match="invalid literal"):
        create_dataset("prime_factorization", size=3, seed=1).score_answer(answer="+5 7", entry=entry)
    assert score(json.dumps(entry), "<answer>+5 7</answer>") == 0


def test_a_row_whose_own_answer_cannot_be_judged_is_an_error():
    entry = entry_of("prime_factorization") | {"answer": "none at all"}
    with pytest.raises(RewardError, match="the verifier of 'prime_factorization' fails on the row's own answer"):
        score(json.dumps(entry), "<answer>+5 7</answer>")


@pytest.mark.parametrize("row", ["{", "[]", "null", '{"metadata": {}}', None, 3])
def test_a_row_that_is_no_entry_is_an_error(row: Any):
    with pytest.raises(RewardError, match=r"column 'entry' of this row is .* expected an entry"):
        score(row, "<answer>1</answer>")


def test_an_entry_of_an_unknown_task_is_an_error():
    with pytest.raises(RewardError, match="has no task 'nothing'"):
        score({"metadata": {"source_dataset": "nothing"}}, "<answer>1</answer>")


def test_settings_are_checked():
    with pytest.raises(RewardInputError, match="extract"):
        ReasoningGym(extract="tag")


def test_without_the_package_the_error_names_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(RewardInputError, match=r"pip install 'rlkl\[reasoning-gym\]'"):
        ReasoningGym().setup()
