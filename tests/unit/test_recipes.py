"""The recipes that come with rlkl."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlkl.machine import Machine
from rlkl.plan import make_plan
from rlkl.recipe_io import load_recipe

RECIPES = Path(__file__).parents[2] / "recipes"
FOR_OTHER_COMMANDS = {"reviews_reward_model", "reviews_sft"}
NAMES = sorted({file.stem for file in RECIPES.glob("*.yaml")} - FOR_OTHER_COMMANDS)
ONLINE = ["reviews_grpo", "reviews_ppo", "reviews_sparsepo", "reviews_superhf"]


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_called_after_its_file_and_needs_no_warning(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(str(RECIPES / f"{name}.yaml"))
    assert recipe.run.name == name
    assert make_plan(recipe, Machine(cpus=4, memory_gib=16.0, gpus=())).warnings == ()


def test_recipes_of_the_reviews_world_differ_only_in_their_rule():
    def shared(name: str) -> dict:
        return load_recipe(str(RECIPES / f"{name}.yaml")).model_dump(exclude={"run", "update"})

    assert [name for name in NAMES if name.startswith("reviews")] == sorted([*ONLINE, "reviews_dpo"])
    assert all(shared(name) == shared(ONLINE[0]) for name in ONLINE)
    rules = {load_recipe(str(RECIPES / f"{name}.yaml")).update.rule for name in ONLINE}
    assert len(rules) == len(ONLINE)


def test_stored_preferences_bring_as_many_sequences_as_are_sampled():
    sampled = load_recipe(str(RECIPES / "reviews_grpo.yaml"))
    stored = load_recipe(str(RECIPES / "reviews_dpo.yaml"))
    assert stored.rollout.prompts_per_step * 2 == sampled.rollout.prompts_per_step * sampled.rollout.samples_per_prompt
    assert (stored.steps, stored.seed, stored.model, stored.learner) == (
        sampled.steps,
        sampled.seed,
        sampled.model,
        sampled.learner,
    )


def test_the_readme_names_every_recipe():
    readme = (RECIPES / "README.md").read_text()
    assert [name for name in [*NAMES, *FOR_OTHER_COMMANDS] if f"`{name}`" not in readme] == []
