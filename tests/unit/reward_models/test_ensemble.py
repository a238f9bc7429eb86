"""Several rewards as one."""

from __future__ import annotations

import asyncio
import inspect
import math
import pickle
import random
from typing import Any

import pytest

import rlkl
from reward_models import Ensemble
from rlkl.errors import RewardError, RewardInputError
from tests.unit.reward_models import members as rewards

MEMBERS = "tests.unit.reward_models.members"


def member(name: str, /, **keys: Any) -> dict[str, Any]:
    return {"function": f"{MEMBERS}:{name}", **keys}


def models(*biases: float, **keys: Any) -> list[dict[str, Any]]:
    return [member("Model", settings={"bias": bias}, name=f"m{n}", **keys) for n, bias in enumerate(biases)]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"combine": "mean"}, 4.0),
        ({"combine": "min"}, 2.0),
        ({"combine": "penalized"}, 4.0 - math.sqrt(14 / 3)),
        ({"combine": "penalized", "penalty": 0.5}, 4.0 - 0.5 * math.sqrt(14 / 3)),
    ],
)
def test_ways_to_combine(settings, expected):
    ensemble = Ensemble(members=models(0.0, 1.0, 5.0), **settings)
    ensemble.setup()
    result = ensemble(completion="ab")
    assert result.value == pytest.approx(expected)
    components = {"m0": 2.0, "m1": 3.0, "m2": 7.0, "disagreement": math.sqrt(14 / 3)}
    assert dict(result.components) == pytest.approx(components)


def test_weights_and_scales():
    ensemble = Ensemble(
        members=[member("length", weight=3), member("digits", settings={"bonus": 1}, shift=1, scale=0.5)],
        combine="weighted",
    )
    result = ensemble(completion="12", answer="12")
    assert result.value == pytest.approx((3 * 2 + 1 * 2) / 4)
    assert result.components["digits"] == 2.0


def test_its_arguments_are_those_of_its_members():
    ensemble = Ensemble(members=[rewards.length, member("digits")])
    parameters = inspect.signature(ensemble).parameters
    assert list(parameters) == ["completion", "answer", "bonus"]
    assert parameters["bonus"].default == 0.0
    with_settings = Ensemble(members=[rewards.length, member("digits", settings={"bonus": 1})])
    assert list(inspect.signature(with_settings).parameters) == ["completion", "answer"]
    batch = Ensemble(members=[rewards.batch_length, member("digits")])
    assert list(inspect.signature(batch).parameters) == ["completions", "answer", "bonus"]


def test_one_batch_function_makes_a_batch_of_all():
    ensemble = Ensemble(members=[rewards.batch_length, rewards.digits])
    results = ensemble(completions=["1", "22"], answer=["1", "3"])
    assert [result.value for result in results] == [1.0, 1.0]
    assert [result.components["digits"] for result in results] == [1.0, 0.0]


def test_each_sample_of_a_batch_has_its_own_generator():
    ensemble = Ensemble(members=[rewards.batch_length, rewards.draws])
    results = ensemble(completions=["a", "a"], rng=[random.Random(0), random.Random(1)])
    assert [result.components["draws"] for result in results] == [random.Random(0).random(), random.Random(1).random()]


def test_async_members_run_at_the_same_time():
    ensemble = Ensemble(members=[rewards.slowly, rewards.length])
    assert asyncio.run(ensemble(completion="ab")).value == pytest.approx(11.0)
    batch = Ensemble(members=[rewards.slowly, rewards.batch_length])
    assert [result.value for result in asyncio.run(batch(completions=["a", "ab"]))] == [5.5, 11.0]


def test_members_that_abstain():
    ensemble = Ensemble(members=[rewards.abstains_on_x, rewards.length])
    result = ensemble(completion="x")
    assert (result.value, dict(result.components)) == (1.0, {"length": 1.0, "disagreement": 0.0})
    both = Ensemble(members=[rewards.abstains_on_x, {"function": rewards.abstains_on_x, "name": "again"}])
    assert both(completion="x") is None
    assert both(completion="y").value == 1.0


def test_a_member_that_fails_fails_all():
    with pytest.raises(RewardError, match="member 'broken' gave nan; expected a finite number"):
        Ensemble(members=[rewards.broken, rewards.length])(completion="a")


def test_setup_close_and_pickling():
    ensemble = pickle.loads(pickle.dumps(Ensemble(members=models(0.0, 1.0))))
    ensemble.setup()
    assert ensemble(completion="a").value == 1.5
    ensemble.close()
    with pytest.raises(AssertionError, match="before it was set up"):
        ensemble(completion="a")


def test_what_it_returns_is_a_reward():
    assert isinstance(Ensemble(members=[rewards.length, rewards.digits])(completion="1", answer="1"), rlkl.Reward)


def test_text_is_no_score():
    with pytest.raises(RewardError, match="member 'in_words' gave '5'"):
        Ensemble(members=[rewards.in_words, rewards.length])(completion="a")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"members": [rewards.length]}, "'members' is .*expected a list of at least two rewards"),
        ({"members": [rewards.length, rewards.length]}, "'length' comes 2 times"),
        ({"members": [rewards.length, {"settings": {}}]}, "expected a mapping with 'function'"),
        ({"members": [rewards.length, member("digits", wieght=1)]}, "did you mean 'weight'"),
        ({"members": [rewards.length, member("digits", weight=2)]}, "only 'combine: weighted' uses"),
        ({"members": [rewards.length, member("digits", scale=0)]}, "'scale' = 0; expected a number above 0"),
        ({"members": [rewards.length, member("digit")]}, "did you mean 'digits'"),
        ({"members": [rewards.length, rewards.takes_all]}, "name every argument"),
        ({"members": [rewards.length, rewards.takes_group]}, "takes 'group'"),
        ({"members": models(0, 1), "combine": "median"}, "'combine' is 'median'"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(RewardInputError, match=message):
        Ensemble(**settings)
