from __future__ import annotations

from pathlib import Path

import pytest

from reward_models.training.recipe import RewardModelRecipe, SftRecipe
from rlkl.cli import main
from rlkl.errors import RecipeError
from rlkl.recipe.io import dump_recipe, load_section
from rlkl.recipe.keys import REQUIRED, describe_keys

DOCS = Path(__file__).parents[4] / "docs" / "reward_models.md"
BOTH = [(RewardModelRecipe, "reviews_reward_model"), (SftRecipe, "reviews_sft")]


@pytest.mark.parametrize(("section", "name"), BOTH)
def test_a_dumped_recipe_reads_the_same(section, name, tmp_path):
    recipe = load_section(section, name, "seed=3", "model.lora={rank: 4}")
    assert (recipe.run.name, recipe.seed, recipe.model.lora.rank) == (name, 3, 4)
    (tmp_path / "dumped.yaml").write_text(dump_recipe(recipe))
    assert load_section(section, tmp_path / "dumped.yaml") == recipe


@pytest.mark.parametrize(("section", "name"), BOTH)
def test_every_key_is_described_and_named_in_the_docs(section, name):
    docs = DOCS.read_text()
    keys = describe_keys(section)
    assert [key.name for key in keys if not key.description] == []
    assert [key.name for key in keys if f"| `{key.name}` | {key.default} |" not in docs] == []
    assert [key.name for key in keys if key.default == REQUIRED] == ["model.path", "data.source"]


@pytest.mark.parametrize(
    ("command", "overrides", "message"),
    [
        ("reward-model", ["learner.lrr=1"], "learner.lrr: unknown key. Did you mean learner.lr?"),
        ("reward-model", ["split.halfs=true"], "split.halfs: unknown key. Did you mean split.halves?"),
        ("reward-model", ["rollout.workers=2"], "rollout: unknown key"),
        ("reward-model", ["learner.batch_size=10", "learner.micro_batch_size=4"], "batch_size = 10 is no multiple of"),
        ("reward-model", ["data.margin_column=m", "data.probability_column=p"], "exclude each other"),
        ("reward-model", ["split.held_out_fraction=0"], "split.held_out_fraction = 0: expected a number > 0 and < 1"),
        ("reward-model", ["data.chosen_column=chozen"], "did you mean 'chosen'?"),
        ("reward-model", ["data.margin_column=chosen_glod"], "did you mean 'chosen_gold'?"),
        ("reward-model", ["data.margin_column=chosen"], "expected a number"),
        ("reward-model", ["data.source=nowhere.jsonl"], "data.source = 'nowhere.jsonl' does not exist"),
        ("reward-model", ["model.path=task:reviewz"], "no built-in task is called 'reviewz'"),
        ("sft", ["data.chosen_column=chosen"], "data.chosen_column: unknown key"),
        ("sft", ["data.completion_column=chozen"], "did you mean 'chosen'?"),
        ("sft", ["data.max_answer_tokens=1"], "8192 too long"),
        ("sft", ["learner.schedule=cosinus"], "expected one of constant, linear, cosine"),
    ],
)
def test_bad_input_ends_with_exit_code_2_and_leaves_no_folder(
    command, overrides, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    name = {"reward-model": "reviews_reward_model", "sft": "reviews_sft"}[command]
    assert main([command, name, *overrides]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_run_folder_in_use_is_refused(tmp_path, capsys):
    (tmp_path / "something").touch()
    assert main(["sft", "reviews_sft", f"run.dir={tmp_path}"]) == 2
    message = capsys.readouterr().err
    assert "already holds files; choose another folder" in message
    assert "--resume" not in message


def test_all_problems_of_a_recipe_are_listed(tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text("model: {dtype: float16}\ndata: {source: x.jsonl, chosen: c}\n")
    with pytest.raises(RecipeError) as error:
        load_section(RewardModelRecipe, path)
    assert "3 problems" in str(error.value)
    assert "data.chosen: unknown key. Did you mean data.chosen_column?" in str(error.value)
    assert "model.path is missing" in str(error.value)
