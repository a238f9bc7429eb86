"""Arguments that functions may ask for: of one sample, of many, or of a group."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
from PIL import Image as pil

from rlkl.data.images import encode_image
from rlkl.errors import RewardError, RewardInputError
from rlkl.rewards import load_rewards
from rlkl.rewards.function.arguments import Group, State
from rlkl.seeds import derive_seed
from tests.unit.rewards.score_texts import STATE, completion, prompts, rounds

PROMPTS = prompts(2)


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
