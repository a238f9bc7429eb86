"""From the words of `rlkl eval` to what is evaluated."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from reward_models.training.recipe import RewardModelRecipe, SftRecipe
from rlkl.cli import _parse
from rlkl.commands.eval_inputs import evaluation_recipe, policy_of
from rlkl.errors import InputError, RecipeError
from rlkl.recipe import Recipe
from rlkl.recipe.io import dump_recipe, recipe_from


def asked(*words: str) -> Recipe:
    return evaluation_recipe(_parse(["eval", *words]))


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """The folder of a finished run with adapters, a schedule, and an evaluation."""
    return make_run(
        tmp_path / "run",
        model={"path": "base", "lora": {"rank": 4}, "dtype": "bfloat16"},
        rollout={"schedule": "one_step_off", "max_new_tokens": 9, "vllm": {"seed": 1}},
        eval={"data": {"split": "test"}, "samples": 3, "limit": 7},
    )


def make_run(folder: Path, **sections: Any) -> Path:
    values: dict[str, Any] = {
        "seed": 5,
        "model": {"path": "base"},
        "data": {"source": "hub/set", "max_prompt_tokens": 20},
        "rewards": [{"function": "task:arithmetic"}],
    }
    (folder / "policy").mkdir(parents=True)
    (folder / "recipe.yaml").write_text(dump_recipe(recipe_from(values | sections)))
    return folder


def test_a_run_gives_policy_data_rewards_sampling_and_reference(run_dir: Path):
    recipe = asked(str(run_dir))

    assert (recipe.model.path, recipe.model.reference) == (str(run_dir / "policy"), "base")
    assert (recipe.model.dtype, recipe.model.lora, recipe.seed) == ("bfloat16", None, 5)
    assert (recipe.rollout.schedule, recipe.rollout.max_new_tokens) == ("alternate", 9)
    assert recipe.rollout.vllm.arguments == {"seed": 1}
    assert recipe.eval is not None
    assert (recipe.eval.samples, recipe.eval.limit, recipe.eval.greedy) == (3, 7, True)
    assert recipe.eval_data is not None
    assert (recipe.eval_data.source, recipe.eval_data.split) == ("hub/set", "test")


def test_options_win_over_the_recipe_and_overrides_over_both(run_dir: Path):
    words = ["--samples", "2", "--no-greedy", "--limit", "4", "--seed", "9", "--max-new-tokens", "6", "--engine", "hf"]
    recipe = asked(str(run_dir), *words, "--reference", "none", "--data", "held.jsonl", "eval.samples=1")

    assert recipe.eval is not None
    assert (recipe.eval.samples, recipe.eval.greedy, recipe.eval.limit, recipe.seed) == (1, False, 4, 9)
    assert (recipe.rollout.engine, recipe.rollout.max_new_tokens, recipe.model.reference) == ("hf", 6, None)
    assert recipe.eval.data.model_dump(exclude_none=True) == {"source": "held.jsonl"}


def test_a_model_alone_needs_data_and_rewards():
    recipe = asked("some/model", "--data", "rows.jsonl", "--reward", "my.py:f", "--reward", "my.py:g")

    assert recipe.eval is not None
    assert [reward.function for reward in recipe.eval.rewards] == ["my.py:f", "my.py:g"]
    assert (recipe.eval.samples, recipe.eval.greedy, recipe.model.reference) == (8, False, None)
    with pytest.raises(InputError, match="rlkl eval needs data: --data FILE, --recipe RECIPE"):
        asked("some/model", "--reward", "my.py:f")
    with pytest.raises(InputError, match="rlkl eval needs rewards: --reward FILE:FUNCTION"):
        asked("some/model", "--data", "rows.jsonl")


def test_a_run_on_stored_pairs_is_evaluated_on_its_prompts(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    run = make_run(
        tmp_path / "pairs",
        data={"source": "pairs.jsonl", "chosen_column": "a", "rejected_column": "b"},
        rollout={"workers": 0},
        update={"rule": "sparsepo"},
        rewards=[],
    )
    with caplog.at_level(logging.WARNING):
        recipe = asked(str(run), "--reward", "my.py:f")

    assert (recipe.data.has_pairs, recipe.rollout.workers) == (False, 1)
    assert recipe.eval_data is not None
    assert recipe.eval_data.source == "pairs.jsonl"
    assert "evaluating on its training prompts" in caplog.text


def test_a_run_without_a_policy_names_its_newest_checkpoint(tmp_path: Path):
    run = make_run(tmp_path / "run")
    (run / "policy").rmdir()
    for name in ("step_999950", "step_1000000"):
        (run / "checkpoints" / name / "policy").mkdir(parents=True)

    with pytest.raises(InputError, match=r"has no policy yet.*step_1000000/policy --recipe"):
        policy_of(str(run))


def make_sft_run(folder: Path) -> Path:
    values = {"model": {"path": "base", "dtype": "bfloat16"}, "seed": 3}
    values["data"] = {"source": "demos.jsonl", "completion_column": "answer", "max_prompt_tokens": 20}
    (folder / "policy").mkdir(parents=True)
    (folder / "recipe.yaml").write_text(dump_recipe(SftRecipe.model_validate(values)))
    return folder


def test_the_policy_of_a_warm_start_is_evaluated_with_the_settings_that_both_commands_have(tmp_path: Path):
    run = make_sft_run(tmp_path / "warm")
    recipe = asked(str(run), "--data", "held.jsonl", "--reward", "my.py:f")

    assert (recipe.model.path, recipe.model.reference) == (str(run / "policy"), "base")
    assert (recipe.model.dtype, recipe.seed, recipe.data.max_prompt_tokens) == ("bfloat16", 3, 20)
    assert recipe.eval is not None
    assert recipe.eval.data.model_dump(exclude_none=True) == {"source": "held.jsonl"}
    with pytest.raises(InputError, match="rlkl eval needs rewards"):
        asked(str(run), "--data", "held.jsonl")


def test_a_reward_model_is_no_policy(tmp_path: Path):
    run = tmp_path / "rm"
    run.mkdir()
    values = {"model": {"path": "base"}, "data": {"source": "pairs.jsonl"}}
    (run / "recipe.yaml").write_text(dump_recipe(RewardModelRecipe.model_validate(values)))
    with pytest.raises(InputError, match=r"rm is the folder of `rlkl reward-model`.* Its model is .*rm/reward_model"):
        policy_of(str(run))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["learner.lr=1"], r"learner.lr does nothing in rlkl eval"),
        (["rollout.schedule=stream"], r"rollout.schedule does nothing in rlkl eval"),
        (["--reference", "base", "--temperature", "0.5"], r"measured on samples at temperature 1"),
        (["--samples", "0"], r"eval.samples = 0: expected a whole number >= 1"),
        (["data.max_prompt_tokens=0"], r"data.max_prompt_tokens = 0"),
    ],
)
def test_words_that_cannot_work_are_refused(run_dir: Path, words: list[str], message: str):
    with pytest.raises(InputError, match=message):
        asked(str(run_dir), *words)


def test_a_mistake_in_a_recipe_is_not_passed_over(tmp_path: Path):
    (tmp_path / "mine.yaml").write_text("model: {path: m}\ndata: {source: d}\nlearner: {lrr: 1}\n")

    with pytest.raises(RecipeError, match=r"learner\.lrr: unknown key"):
        asked("some/model", "--recipe", str(tmp_path / "mine.yaml"), "--reward", "my.py:f")
