"""What functions may ask for and return: one sample, many, or a group; numbers, components, tags, token values."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as pil

import rlkl
from rlkl.data.images import encode_image
from rlkl.errors import RewardError, RewardInputError
from rlkl.rewards import load_rewards
from rlkl.rewards.function.arguments import Group, State
from rlkl.rewards.scoring.aggregate import SampleReward
from rlkl.seeds import derive_seed
from rlkl.types import Prompt
from tests.unit.rewards.scoring import STATE, completion, prompts

PROMPTS = prompts(2)


def rounds(function: Callable[..., Any], *, samples: int = 2, at: list[Prompt] = PROMPTS) -> list[SampleReward]:
    rewards = load_rewards([], [function])
    rewards.check(at)
    scoring = rewards.open_round(at, samples=samples, state=STATE, draws=range(len(at)))
    for index in range(len(at) * samples):
        scoring.add(index, completion("x" * index))
    return scoring.finish().scored


def test_a_batch_function_sees_lists_and_the_state_once():
    seen: dict[str, Any] = {}

    def spy(prompts, completions, completion_ids, prompt_ids, images, finish_reason, answer, rng, state):
        seen.update(locals())
        return [float(len(text)) for text in completions]

    assert [scored.reward for scored in rounds(spy)] == [0.0, 1.0, 2.0, 3.0]
    del seen["seen"]
    draws = seen.pop("rng")
    assert [draw.random() for draw in draws] == [
        random.Random(derive_seed(7, "reward", 2, f"row-{n // 2}", n % 2, "spy")).random() for n in range(4)
    ]
    assert seen == {
        "prompts": ["0+1=", "0+1=", "1+1=", "1+1="],
        "completions": ["", "x", "xx", "xxx"],
        "completion_ids": [(1,), (120, 1), (120, 120, 1), (120, 120, 120, 1)],
        "prompt_ids": [(0, 1), (0, 1), (1, 1), (1, 1)],
        "images": [(), (), (), ()],
        "finish_reason": ["stop"] * 4,
        "answer": ["1", "1", "2", "2"],
        "state": STATE,
    }


def test_a_group_function_sees_all_samples_of_one_prompt():
    seen: list[Group] = []

    def longest(group, answer):
        seen.append(group)
        best = max(group.completions, key=len)
        assert answer == group.columns["answer"]
        return [text == best for text in group.completions]

    assert [scored.reward for scored in rounds(longest)] == [0.0, 1.0, 0.0, 1.0]
    assert [group.prompt for group in seen] == ["0+1=", "1+1="]
    assert seen[1].completion_ids == ((120, 120, 1), (120, 120, 120, 1))
    assert len(seen[1]) == 2


def test_pictures_come_as_pil_images():
    picture = encode_image(pil.new("RGB", (5, 3), (200, 10, 30)))
    seeing = [replace(prompt, images=(picture,)) for prompt in PROMPTS]

    def of_sample(images):
        return images[0].getpixel((1, 1))[0] + images[0].width

    def of_batch(images, prompts):
        return [each[0].getpixel((1, 1))[0] for each in images]

    def of_group(group):
        return [group.images[0].height] * len(group)

    assert [scored.reward for scored in rounds(of_sample, at=seeing)] == [205.0] * 4
    assert [scored.reward for scored in rounds(of_batch, at=seeing)] == [200.0] * 4
    assert [scored.reward for scored in rounds(of_group, at=seeing)] == [3.0] * 4


def test_state_says_where_the_run_stands():
    def annealed(state: State):
        return (state.step, state.steps, state.epoch, state.seed) == (3, 10, 0.5, 7)

    assert [scored.reward for scored in rounds(annealed)] == [1.0] * 4


def test_double_star_takes_columns_and_texts_but_neither_draw_nor_state():
    def spy(completion, **others):
        return sorted(others) == ["answer", "completion_ids", "finish_reason", "images", "prompt", "prompt_ids"]

    assert [scored.reward for scored in rounds(spy)] == [1.0] * 4


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


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda prompts, completion: 0, r"'completion' is not available.*did you mean 'completions'"),
        (lambda group, completion: 0, r"'completion' is not available.*did you mean 'completions'"),
        (lambda completions, anwser: 0, r"'anwser' is not available.*did you mean 'answer'"),
        (lambda completion, groups: 0, r"'groups' is not available"),
    ],
)
def test_arguments_that_do_not_go_together_are_refused_before_anything_runs(function: Any, message: str):
    function.__name__ = "f"
    with pytest.raises(RewardInputError, match=message):
        load_rewards([], [function]).check(PROMPTS)


def test_a_row_that_lacks_a_column_fails_alone():
    def gold(completion, hint):
        return 1.0

    def golds(completions, hint):
        return [1.0] * len(completions)

    def with_default(completions, hint="none"):
        return [float(len(each)) for each in hint]

    rows = [replace(PROMPTS[0], columns={"hint": "ab"}), PROMPTS[1]]
    for function in (gold, golds):
        rewards = load_rewards([], [function])
        rewards.check(rows[:1])
        scoring = rewards.open_round(rows, samples=1, state=STATE, draws=[0, 1])
        for index in range(2):
            scoring.add(index, completion("x"))
        with pytest.raises(RewardError, match=r"raised RewardInputError on prompt row-1.*'hint' is not available"):
            scoring.finish()
    assert [scored.reward for scored in rounds(with_default, samples=1, at=rows)] == [2.0, 4.0]
