"""The command that a recipe or a run folder belongs to."""

from __future__ import annotations

from pathlib import Path

import pytest

from reward_models.training.recipe import RewardModelRecipe, SftRecipe
from rlkl.cli import main
from rlkl.errors import CheckpointError, RecipeError
from rlkl.recipe import Recipe
from rlkl.recipe.io import built_in_names, dump_recipe, load_recipe, load_section, read_values
from rlkl.recipe.keys import describe_keys
from rlkl.recipe.owner import _OF_BOTH, _OF_ONE, _OF_TRAIN, REWARD_MODEL, SFT, TRAIN, other_owner, owners_of
from rlkl.recipe.run_dir import recipe_path
from rlkl.schema import Section
from tests.run_folders import write_run

SCHEMAS: dict[str, type[Section]] = {TRAIN: Recipe, SFT: SftRecipe, REWARD_MODEL: RewardModelRecipe}


def foreign_run(folder: Path, owner: str = SFT) -> Path:
    """Write the folder of a finished run of `rlkl sft` or `rlkl reward-model`, as far as others read it."""
    recipe = load_section(SCHEMAS[owner], {SFT: "reviews_sft", REWARD_MODEL: "reviews_reward_model"}[owner])
    (folder / {SFT: "policy", REWARD_MODEL: "reward_model"}[owner]).mkdir(parents=True)
    (folder / "recipe.yaml").write_text(dump_recipe(recipe))
    return folder


def test_every_key_that_tells_is_of_the_schemas_that_it_tells() -> None:
    owners = {
        key: {command for command, schema in SCHEMAS.items() if key in _sections_and_keys(schema)}
        for key in (*_OF_TRAIN, *_OF_BOTH, *_OF_ONE[SFT], *_OF_ONE[REWARD_MODEL])
    }
    expected = {key: {TRAIN} for key in _OF_TRAIN} | {key: {SFT, REWARD_MODEL} for key in _OF_BOTH}
    expected |= {key: {command} for command, keys in _OF_ONE.items() for key in keys}
    assert owners == expected


def _sections_and_keys(schema: type[Section]) -> set[str]:
    keys = {key.name for key in describe_keys(schema)}
    return {*schema.model_fields, *keys}


@pytest.mark.parametrize("name", [name for name in built_in_names() if name != "wandb_sweep"])
def test_every_built_in_recipe_has_one_owner(name: str) -> None:
    owner = {"reviews_sft": SFT, "reviews_reward_model": REWARD_MODEL}.get(name, TRAIN)
    values, _ = read_values(name)
    assert owners_of(values) == (owner,)
    schema = SCHEMAS[owner]
    resolved = load_recipe(name) if schema is Recipe else load_section(schema, name)
    assert owners_of(resolved.model_dump()) == (owner,)


def test_a_recipe_whose_keys_do_not_tell_is_read_as_the_command_asks() -> None:
    assert owners_of({"model": {"path": "base"}, "data": {"source": "rows.jsonl"}, "learner": None}) == ()
    assert owners_of({"data": {"max_answer_tokens": 8}}) == (SFT, REWARD_MODEL)
    assert owners_of(["model"]) == ()


@pytest.mark.parametrize(
    ("words", "way"),
    [
        ("plan reviews_sft", "this is a recipe of `rlkl sft`, not of `rlkl train`; run rlkl sft reviews_sft"),
        ("train reviews_sft steps=9 rewards=[]", "run rlkl sft reviews_sft"),
        ("train reviews_reward_model", "run rlkl reward-model reviews_reward_model"),
        ("sweep reviews_sft learner.lr=[0.1,0.2] seeds=2 --dry-run", "run rlkl sft reviews_sft"),
        ("eval base --recipe reviews_sft", "run rlkl sft reviews_sft"),
        ("reward-model reviews_sft", "this is a recipe of `rlkl sft`, not of `rlkl reward-model`"),
        ("sft reviews_reward_model", "run rlkl reward-model reviews_reward_model"),
        ("sft quickstart learner.epochs=2", "this is a recipe of `rlkl train`, not of `rlkl sft`; run rlkl train"),
    ],
)
def test_a_recipe_of_another_command_is_named(words: str, way: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words.split()) == 2
    told = capsys.readouterr().err
    assert way in told
    assert "unknown key" not in told


def test_a_recipe_of_either_command_names_both(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text("model: {path: base}\ndata: {source: rows.jsonl}\nsplit: {held_out_fraction: 0.2}\n")
    with pytest.raises(RecipeError, match=f"run rlkl sft {file} or rlkl reward-model {file}$"):
        load_recipe(file)
    assert load_section(SftRecipe, file, command=SFT).split.held_out_fraction == 0.2


@pytest.mark.parametrize(("owner", "model"), [(SFT, "policy"), (REWARD_MODEL, "reward_model")])
@pytest.mark.parametrize(
    "words",
    ["push {} me/x --dry-run", "compare {} {}", "report {}", "train --resume {}", "plan quickstart --measured {}"],
)
def test_the_folder_of_another_command_is_refused_and_its_model_named(
    words: str, owner: str, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = foreign_run(tmp_path / "warm", owner)
    assert main([word.format(folder) for word in words.split()]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"error: {folder} is the folder of `rlkl {owner}`")
    assert f"Its model is {folder / model}: give that to" in told
    assert not (folder / "report.html").exists()


def test_a_recipe_that_cannot_be_read_is_left_to_its_reader(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", steps=1)
    assert other_owner(recipe_path(run)) is None
    for content in (b"\xff", b"a: [", b"- a\n"):
        (run / "recipe.yaml").write_bytes(content)
        assert recipe_path(run) == run / "recipe.yaml"
    with pytest.raises(CheckpointError, match="is not the folder of a run"):
        recipe_path(tmp_path)
