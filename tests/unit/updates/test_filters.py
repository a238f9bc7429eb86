"""Which completions pass a filter (the properties of SuperHF's filter, and those of the other two)."""

from __future__ import annotations

import math

import pytest
from pydantic import ValidationError

from rlkl.types import Completion, Prompt, Rollout, RolloutGroup
from rlkl.updates.filters import filter_groups
from rlkl.updates.settings import FilterSettings


def group(rewards: dict[str, float], prompt: str = "p") -> RolloutGroup:
    """Completions by text, in the order in which they were sampled."""
    rollouts = [
        Rollout(
            sample_index=index,
            completion=Completion(token_ids=(5, 1), logprobs=(-0.5, -0.25), finish_reason="stop", text=text),
            reward=reward,
            components={},
            weights_version=0,
        )
        for index, (text, reward) in enumerate(rewards.items())
    ]
    return RolloutGroup(prompt=Prompt(id=prompt, text="", token_ids=(3,)), rollouts=tuple(rollouts))


def texts(groups: list[RolloutGroup]) -> list[list[str]]:
    return [[rollout.completion.text for rollout in group.rollouts] for group in groups]


def top(k: int) -> FilterSettings:
    return FilterSettings(keep="top_k", value=float(k))


def test_the_best_of_each_prompt_is_kept_and_prompts_never_mix() -> None:
    groups = [group({"a": 0.1, "b": 0.9, "c": 0.5}, "low"), group({"d": 7.0, "e": 9.0, "f": 8.0}, "high")]
    kept = filter_groups(groups, top(1))
    assert texts(kept) == [["b"], ["e"]]
    assert [each.prompt.id for each in kept] == ["low", "high"]
    assert kept[0].rollouts[0].sample_index == 1


def test_the_order_of_sampling_changes_nothing_unless_rewards_are_equal() -> None:
    assert texts(filter_groups([group({"c": 0.5, "b": 0.9, "a": 0.1})], top(1))) == [["b"]]
    assert texts(filter_groups([group({"late": 0.2, "first": 0.9, "second": 0.9})], top(1))) == [["first"]]
    assert texts(filter_groups([group({"x": 1.0, "y": 1.0, "z": 1.0})], top(2))) == [["x", "y"]]


@pytest.mark.parametrize("settings", [top(2), FilterSettings(keep="top_fraction", value=0.5)])
def test_an_increasing_transform_of_the_rewards_changes_nothing(settings: FilterSettings) -> None:
    rewards = {"a": -1.0, "b": 2.0, "c": 0.3, "d": 0.2}
    kept = texts(filter_groups([group(rewards)], settings))
    for transform in (lambda r: 3 * r - 8, math.exp, lambda r: r**3):
        assert texts(filter_groups([group({text: transform(r) for text, r in rewards.items()})], settings)) == kept


def test_completions_without_visible_text_are_never_kept() -> None:
    rewards = {"": 9.0, " \n": 8.0, "word": 0.0}
    assert texts(filter_groups([group(rewards)], top(2))) == [["word"]]
    assert texts(filter_groups([group({"": 1.0})], top(1))) == [[]]


def test_top_k_keeps_what_survives_when_there_are_fewer() -> None:
    groups = [group({"a": 1.0, "b": 2.0, "c": 3.0}), group({"": 5.0, "d": 4.0, "e": 0.0})]
    assert texts(filter_groups(groups, top(3))) == [["c", "b", "a"], ["d", "e"]]


def test_one_sample_a_prompt_passes_as_it_is() -> None:
    groups = [group({"only": -3.0}), group({"other": 2.0})]
    assert filter_groups(groups, top(1)) == groups


def test_no_filter_keeps_everything_as_it_came() -> None:
    groups = [group({"b": 0.0, "": 1.0})]
    assert filter_groups(groups, None) == groups


def test_threshold_takes_rewards_of_at_least_its_value() -> None:
    settings = FilterSettings(keep="threshold", value=0.5)
    groups = [group({"a": 0.4, "b": 0.5, "c": 2.0}), group({"d": 0.0})]
    assert texts(filter_groups(groups, settings)) == [["c", "b"], []]


@pytest.mark.parametrize(
    ("share", "samples", "kept"), [(0.5, 4, 2), (0.5, 5, 3), (0.01, 4, 1), (1.0, 3, 3), (0.07, 100, 7), (0.1, 30, 3)]
)
def test_top_fraction_rounds_up(share: float, samples: int, kept: int) -> None:
    settings = FilterSettings(keep="top_fraction", value=share)
    (filtered,) = filter_groups([group({str(index): float(index) for index in range(samples)})], settings)
    assert [rollout.reward for rollout in filtered.rollouts] == [float(samples - 1 - n) for n in range(kept)]


@pytest.mark.parametrize(
    ("keep", "value"),
    [
        ("top_k", 0.0),
        ("top_k", 1.5),
        ("top_fraction", 0.0),
        ("top_fraction", 1.1),
    ],
)
def test_a_value_that_means_nothing_is_refused(keep: str, value: float) -> None:
    with pytest.raises(ValidationError, match=f"value = {value} with keep = {keep}: take"):
        FilterSettings.model_validate({"keep": keep, "value": value})


@pytest.mark.parametrize("value", [math.inf, math.nan])
@pytest.mark.parametrize("keep", ["top_k", "top_fraction", "threshold"])
def test_a_value_must_be_finite(keep: str, value: float) -> None:
    with pytest.raises(ValidationError, match="finite number"):
        FilterSettings.model_validate({"keep": keep, "value": value})
