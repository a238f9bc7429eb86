"""Calling rewards: what they get, what they may return, how they fail."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlkl.errors import RewardError, RewardInputError
from rlkl.recipe import RewardSection
from rlkl.rewards import load_rewards, reward
from rlkl.seeds import derive_seed
from rlkl.types import Completion, Prompt

PROMPT = Prompt(id="row-7", text="[user]2+3=", token_ids=(5, 6), columns={"prompt": "2+3=", "answer": "5"})


def completion(text: str, *token_ids: int) -> Completion:
    return Completion(token_ids=token_ids, logprobs=(0.0,) * len(token_ids), finish_reason="stop", text=text)


def score(function: Callable[..., Any], *texts: str, step: int = 0) -> list[float]:
    scored = load_rewards([], [function]).score(PROMPT, [completion(text) for text in texts], step=step, seed=0)
    return [one.reward for one in scored]


def returning(value: Any) -> Callable[[], Any]:
    def fixed() -> Any:
        return value

    return fixed


def test_a_reward_sees_the_sample_and_its_row():
    seen = {}

    def spy(prompt, completion, completion_ids, prompt_ids, answer):
        seen.update(locals())
        return 0.0

    load_rewards([], [spy]).score(PROMPT, [completion("5", 8, 1)], step=0, seed=0)
    del seen["seen"]
    assert seen == {
        "prompt": "[user]2+3=",
        "completion": "5",
        "completion_ids": (8, 1),
        "prompt_ids": (5, 6),
        "answer": "5",
    }


def test_components_are_raw_and_the_sum_is_weighted():
    @reward(weight=2.0)
    def right(completion, answer):
        return completion == answer

    @reward(weight=-0.5)
    def length(completion):
        return len(completion)

    scored = load_rewards([], [right, length]).score(PROMPT, [completion("5"), completion("55")], step=0, seed=0)
    assert [dict(one.components) for one in scored] == [{"right": 1.0, "length": 1.0}, {"right": 0.0, "length": 2.0}]
    assert [one.reward for one in scored] == [1.5, -1.0]


@pytest.mark.parametrize(
    ("value", "expected"),
    [(1, 1.0), (True, 1.0), (np.float32(0.5), 0.5), (np.bool_(True), 1.0), (torch.tensor(0.25), 0.25)],
)
def test_anything_that_is_one_number_is_taken(value, expected):
    assert score(returning(value), "x") == [expected]


@pytest.mark.parametrize(
    "value", ["1.0", math.nan, math.inf, [1.0], {"score": "high"}, {}, torch.tensor([1.0, 2.0]), 1j, 10**400]
)
def test_anything_else_names_reward_prompt_and_completion(value):
    with pytest.raises(RewardError, match=rf"'fixed' returned .*\({type(value).__name__}\) on prompt row-7.*'abc'"):
        score(returning(value), "abc")


def test_a_raised_error_is_carried_with_its_sample():
    def strict(completion):
        return int(completion)

    with pytest.raises(RewardError, match=r"'strict' raised ValueError on prompt row-7, completion 'five'") as caught:
        score(strict, "5", "five")
    assert isinstance(caught.value.__cause__, ValueError)


def test_a_long_completion_is_cut_in_the_message():
    with pytest.raises(RewardError) as caught:
        score(returning("no number"), "y" * 10_000)
    assert str(caught.value).count("y") < 600


def test_rng_depends_on_step_prompt_sample_and_reward_and_on_nothing_else():
    def draw(rng):
        return rng.random()

    first = score(draw, "a", "b")
    assert first == score(draw, "c", "d")
    assert first[0] != first[1]
    assert first != score(draw, "a", "b", step=1)
    assert first[1] == random.Random(derive_seed(0, "reward", 0, "row-7", 1, "draw")).random()


def test_check_finds_an_argument_that_nobody_gives_without_calling_anything():
    def reward_with_typo(completion, anwser):
        raise AssertionError("called")

    rewards = load_rewards([], [reward_with_typo])
    with pytest.raises(RewardInputError, match=r"'reward_with_typo', prompt row-7: .*'anwser'.*did you mean 'answer'"):
        rewards.check([PROMPT])


def test_check_looks_at_every_row_it_is_given():
    def gold(answer):
        return 1.0

    bare = Prompt(id="row-8", text="x", token_ids=(1,))
    rewards = load_rewards([], [gold])
    rewards.check([PROMPT])
    with pytest.raises(RewardInputError, match=r"row-8"):
        rewards.check([PROMPT, bare])


def may_be_null(completion: str, answer: str | None):
    return 1.0


def may_be_null_at_runtime(completion, answer):
    return 1.0


may_be_null_at_runtime.__annotations__ = {"answer": str | None}  # the other annotations of this file are texts


def any_value(completion: str, answer: Any):
    return 1.0


def has_a_default(completion: str, answer: str = "none"):
    return 1.0


def is_text(completion: str, answer: str):
    return 1.0


def all_may_be_null(completions: list[str], answer: list[str | None]):
    return [1.0] * len(completions)


@pytest.mark.parametrize(
    ("function", "lacking"),
    [
        (may_be_null, 1),
        (may_be_null_at_runtime, 1),
        (any_value, 1),
        (all_may_be_null, 1),
        (has_a_default, 0),
        (is_text, 2),
    ],
)
def test_null_is_a_value_only_if_the_annotation_allows_it(function: Any, lacking: int):
    rows = [
        Prompt(id="full", text="x", token_ids=(1,), columns={"answer": "2"}),
        Prompt(id="null", text="x", token_ids=(1,), columns={"answer": None}),
        Prompt(id="bare", text="x", token_ids=(1,)),
    ]
    rewards = load_rewards([], [function])
    if not lacking:
        assert rewards.check(rows) == []
        return
    first = "bare" if lacking == 1 else "null"
    with pytest.raises(
        RewardInputError, match=rf"'answer' is missing or null in {lacking} of 3 rows \(first: prompt {first}\)"
    ):
        rewards.check(rows)
    if lacking == 1:
        assert rewards.check(rows[:2]) == []


def test_a_failure_names_the_file_with_its_stack_and_the_way_on(tmp_path: Path):
    (tmp_path / "my.py").write_text("def fails(completion):\n    return 1 / 0\n")
    sections = [
        RewardSection(function="task:arithmetic", mode="inline"),
        RewardSection(function=f"{tmp_path}/my.py:fails", mode="inline"),
    ]
    rewards = load_rewards(sections)
    rewards.open_folder(tmp_path, first_step=0)
    with pytest.raises(RewardError) as caught:
        rewards.score(PROMPT, [completion("1")], step=0, seed=0)
    rewards.close()
    told = str(caught.value)
    assert f"Its stack is in {tmp_path}/failures/step_000001.jsonl." in told
    assert "rewards[1].on_error=drop_sample leaves such samples out" in told
    assert caught.value.way_on == "rewards[1].on_error=drop_sample"
    assert (tmp_path / "failures" / "step_000001.jsonl").is_file()
