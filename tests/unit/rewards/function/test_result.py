"""Values that functions may return: numbers, components, tags, token values."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

import rlkl
from rlkl.errors import RewardError
from rlkl.rewards import load_rewards
from tests.unit.rewards.score_texts import completion, prompts, rounds

PROMPTS = prompts(2)


def test_a_batch_function_may_return_an_array():
    def as_array(completions):
        return np.array([len(text) for text in completions])

    def as_tensor(completions):
        return torch.tensor([float(len(text)) for text in completions])

    for function in (as_array, as_tensor):
        assert [scored.reward for scored in rounds(function)] == [0.0, 1.0, 2.0, 3.0]


@pytest.mark.parametrize(
    ("value", "reward", "components"),
    [
        ({"right": 1, "short": 0.25}, 1.25, {"f": 1.25, "f/right": 1.0, "f/short": 0.25}),
        ({"right": 1, "short": None}, 1.0, {"f": 1.0, "f/right": 1.0}),
        (rlkl.Reward(2), 2.0, {"f": 2.0}),
        (rlkl.Reward(value=2.0, components={"right": 1}), 2.0, {"f": 2.0, "f/right": 1.0}),
        (rlkl.Reward(components={"right": 1}), 1.0, {"f": 1.0, "f/right": 1.0}),
        (rlkl.Reward(token_values=[0.5, 0.25]), 0.75, {"f": 0.75}),
        (rlkl.Reward(value=1.0, token_values=[0.5, 0.25]), 1.75, {"f": 1.75}),
        (rlkl.Reward(0.0, token_values=np.array([0.5, 0.25])), 0.75, {"f": 0.75}),  # pyright: ignore[reportArgumentType]
    ],
)
def test_forms_of_a_reward(value: Any, reward: float, components: dict[str, float]):
    def f(completion):
        return value

    scored = load_rewards([], [f]).score(PROMPTS[0], [completion("x")], step=0, seed=0)[0]
    assert scored.reward == reward
    assert scored.components == components


@pytest.mark.parametrize("value", [None, rlkl.Reward(), {"right": None}])
def test_abstaining_is_no_zero(value: Any):
    def f(completion):
        return value

    def other(completion):
        return 2.0

    alone = load_rewards([], [f]).score(PROMPTS[0], [completion("x")], step=0, seed=0)[0]
    assert math.isnan(alone.reward)
    assert (alone.components, alone.failed) == ({}, ())
    beside = load_rewards([], [f, other]).score(PROMPTS[0], [completion("x")], step=0, seed=0)[0]
    assert (beside.reward, beside.components) == (2.0, {"other": 2.0})


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (rlkl.Reward(value=math.nan), "value to be a finite number"),
        (1e39, "a finite number.*too large for float32"),
        (rlkl.Reward(components={"a": -1e39}), "component 'a' to be a finite number.*too large for float32"),
        (rlkl.Reward(components={"a": 3e38, "b": 3e38}), "the sum of its parts to be a finite number.*too large"),
        (rlkl.Reward(token_values=[3e38, 3e38]), "the sum of its parts"),
        (rlkl.Reward(components={"right": "yes"}), "component 'right'"),  # pyright: ignore[reportArgumentType]
        ({"a/b": 1.0}, "'a/b' is no name for a component"),
        ({}, "return None to abstain"),
        (rlkl.Reward(token_values=[1.0]), "one number for each of the 2 completion tokens"),
        (rlkl.Reward(token_values=[1.0, math.inf]), "every token value to be a finite number"),
        (rlkl.Reward(1.0, tags=None), "tags to be a list of texts, got None"),  # pyright: ignore[reportArgumentType]
        (rlkl.Reward(1.0, tags=5), "tags to be a list of texts, got 5"),  # pyright: ignore[reportArgumentType]
        (rlkl.Reward(1.0, tags="odd"), "tags to be a list of texts, got 'odd'"),
        (rlkl.Reward(1.0, tags=["odd", 5]), "tags to be a list of texts"),  # pyright: ignore[reportArgumentType]
    ],
)
def test_what_is_wrong_inside_a_reward_is_named(value: Any, message: str):
    def f(completion):
        return value

    with pytest.raises(RewardError, match=message):
        load_rewards([], [f]).score(PROMPTS[0], [completion("x")], step=0, seed=0)


def test_tags_go_with_the_sample():
    def f(completion):
        return rlkl.Reward(1.0, tags=("long", "odd"))

    def g(completion):
        return rlkl.Reward(1.0, tags=["odd"])

    assert load_rewards([], [f, g]).score(PROMPTS[0], [completion("x")], step=0, seed=0)[0].tags == ("long", "odd")


def test_token_values_are_weighted_and_added_up_at_their_tokens():
    @rlkl.reward(weight=2.0)
    def f(completion_ids):
        return rlkl.Reward(1.0, token_values=[0.5, -0.25])

    def g(completion_ids):
        return rlkl.Reward(token_values=[0.0, 1.0])

    def h(completion):
        return 3.0

    scored = load_rewards([], [f, g, h]).score(PROMPTS[0], [completion("x")], step=0, seed=0)[0]
    assert scored.reward == 2 * (1.0 + 0.25) + 1.0 + 3.0
    assert scored.token_rewards == (1.0, 0.5)
