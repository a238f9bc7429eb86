"""Arguments are filled in by name."""

from __future__ import annotations

import pytest

from rlkl.errors import RewardInputError
from rlkl.rewards.function.signature import bind_arguments, parameters_of

AVAILABLE = {"prompt": "1+1=", "completion": "2", "answer": "2"}


def test_only_what_is_asked_for_is_given():
    def reward(completion, *, answer, level=1): ...

    assert bind_arguments(parameters_of(reward), AVAILABLE) == {"completion": "2", "answer": "2"}


def test_a_default_gives_way_to_an_available_value():
    def reward(completion="", answer="0"): ...

    assert bind_arguments(parameters_of(reward), {"answer": "2"}) == {"answer": "2"}


def test_double_star_takes_everything():
    def reward(completion, **columns): ...

    assert bind_arguments(parameters_of(reward), AVAILABLE) == AVAILABLE


def test_an_unknown_argument_names_the_nearest_and_all_others():
    def reward(completion, anwser): ...

    with pytest.raises(RewardInputError, match=r"'anwser'.*did you mean 'answer'.*answer, completion, prompt"):
        bind_arguments(parameters_of(reward), AVAILABLE)


def test_methods_and_callable_objects_have_no_self_to_fill():
    class Judge:
        def __call__(self, completion): ...

    assert parameters_of(Judge()).required == {"completion"}


def test_positional_only_parameters_are_refused():
    def reward(completion, /): ...

    with pytest.raises(RewardInputError, match=r"'completion'.*positional-only"):
        parameters_of(reward)
