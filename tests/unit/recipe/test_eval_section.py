"""The section ``eval``: where its keys come from, and which combinations are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlkl.commands.plan_warnings import warnings_about
from rlkl.errors import RecipeError
from rlkl.recipe import Recipe
from rlkl.recipe.changes import with_absolute_paths
from rlkl.recipe.io import recipe_from
from rlkl.recipe.placement import reward_actors
from rlkl.system.machine import Machine

HELD_OUT: dict[str, Any] = {"data": {"source": "held.jsonl"}}


def recipe(**sections: Any) -> Recipe:
    values: dict[str, Any] = {
        "model": {"path": "m"},
        "data": {"source": "hub/set", "subset": "main", "prompt_column": "question", "max_prompt_tokens": 64},
        "rewards": [{"function": "task:arithmetic"}],
    }
    return recipe_from(values | sections)


def test_keys_that_are_left_out_come_from_the_data_of_the_training():
    data = recipe(eval={"data": {"split": "test"}}).eval_data

    assert data is not None
    assert (data.source, data.subset, data.split) == ("hub/set", "main", "test")
    assert (data.prompt_column, data.max_prompt_tokens, data.shuffle) == ("question", 64, False)


def test_another_source_does_not_take_over_subset_and_split():
    data = recipe(eval={"data": {"source": "hub/other", "prompt_column": "text"}}).eval_data

    assert data is not None
    assert (data.source, data.subset, data.split) == ("hub/other", None, "train")
    assert (data.prompt_column, data.max_prompt_tokens) == ("text", 64)


def test_without_the_section_there_is_no_evaluation():
    assert recipe().eval is None
    assert recipe().eval_data is None


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"eval": {"data": {}}}, "eval.data names no data of its own"),
        ({"eval": {"data": {"prompt_column": "x"}}}, "set source, subset or split"),
        ({"eval": {"every": 5}}, "eval.data is missing"),
        ({"eval": HELD_OUT | {"every": 0}}, "eval.every = 0: expected a whole number >= 1"),
        ({"eval": HELD_OUT | {"evry": 5}}, "eval.evry: unknown key. Did you mean eval.every"),
        ({"eval": {"data": {"sorce": "x"}}}, "Did you mean eval.data.source"),
        (
            {
                "eval": HELD_OUT,
                "data": {"source": "p.jsonl", "chosen_column": "a", "rejected_column": "b"},
                "rollout": {"workers": 0},
                "update": {"rule": "sparsepo"},
            },
            "evaluate the trained policy with `rlkl eval RUN_DIR",
        ),
        ({"checkpoint": {"best": "eval/gold"}}, "checkpoint.best = eval/gold is measured by an evaluation"),
        ({"checkpoint": {"best": "gold"}}, "expected a metric, such as eval/gold"),
        ({"eval": HELD_OUT, "checkpoint": {"best": "eval/kl"}}, "more is not better"),
        ({"eval": HELD_OUT, "checkpoint": {"best": "eval/mean_se"}}, "more is not better"),
    ],
)
def test_what_cannot_work_is_refused(sections: dict[str, Any], message: str):
    with pytest.raises(RecipeError) as refused:
        recipe(**sections)
    assert message in str(refused.value)


def test_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "held.jsonl").write_text("")
    (tmp_path / "my.py").write_text("")

    stored = with_absolute_paths(recipe(eval=HELD_OUT | {"rewards": [{"function": "my.py:f"}]})).eval

    assert stored is not None
    assert stored.data.source == str(tmp_path / "held.jsonl")
    assert stored.rewards[0].function == f"{tmp_path / 'my.py'}:f"


def test_actors_of_its_rewards_are_reserved():
    judge = {"function": "my.py:Judge", "mode": "actor", "workers": 2, "gpus": 1.0}

    assert sum(actor.gpus for actor in reward_actors(recipe(eval=HELD_OUT | {"rewards": [judge]}))) == 2


@pytest.mark.parametrize(
    ("section", "warning"),
    [
        ({"data": {"source": "hub/set", "subset": "main"}}, "eval.data is the data of the training"),
        (HELD_OUT | {"every": 500}, "eval.every = 500 exceeds steps = 100"),
        (HELD_OUT | {"temperature": 0.5}, "eval.temperature = 0.5: there is no eval/kl"),
    ],
)
def test_settings_that_measure_less_are_warned_of(section: dict[str, Any], warning: str):
    machine = Machine(cpus=4, memory_gib=16.0, gpus=())

    found = [text for text in warnings_about(recipe(eval=section), machine) if text.startswith("eval")]
    assert [text.startswith(warning) for text in found] == [True]
    assert not [text for text in warnings_about(recipe(eval=HELD_OUT), machine) if text.startswith("eval")]
