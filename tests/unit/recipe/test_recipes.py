"""The recipes that come with rlkl."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlkl.commands.plan import make_plan
from rlkl.recipe.io import load_recipe
from rlkl.system.machine import Machine
from rlkl.updates.settings import PapoSettings

RECIPES = Path(__file__).parents[3] / "recipes"
FOR_OTHER_COMMANDS = {"reviews_reward_model", "reviews_sft"}
NAMES = sorted({file.stem for file in RECIPES.glob("*.yaml")} - FOR_OTHER_COMMANDS)
ONLINE = ["reviews_grpo", "reviews_ppo", "reviews_sparsepo", "reviews_superhf"]


LAPTOP = Machine(cpus=4, memory_gib=16.0, gpus=())
GPU_MACHINE = Machine(cpus=64, memory_gib=1024.0, gpus=("H100",) * 4)
KNOWN_WARNINGS = {
    # PAPO's authors ran this, with the code that makes it a constant.
    "papo_qwen2_5_vl_7b": ["update.corrupted_entropy_coef without update.recompute"],
}


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_called_after_its_file_and_needs_no_other_warning(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(str(RECIPES / f"{name}.yaml"))
    assert recipe.run.name == name
    warnings = make_plan(recipe, LAPTOP if recipe.model.path.startswith("task:") else GPU_MACHINE).warnings
    assert [warning.partition(":")[0] for warning in warnings] == KNOWN_WARNINGS.get(name, [])


def test_papos_recipes_carry_its_papers_settings():
    small, large = (load_recipe(str(RECIPES / f"papo_qwen2_5_vl_{size}.yaml")) for size in ("3b", "7b"))
    assert small.model_dump(exclude={"run", "model", "update"}) == large.model_dump(exclude={"run", "model", "update"})
    for recipe, entropy in ((small, 0), (large, 0.05)):
        update, rollout, learner = recipe.update, recipe.rollout, recipe.learner
        assert isinstance(update, PapoSettings)
        assert (update.entropy_coef, update.corrupted_entropy_coef) == (entropy, entropy)
        assert (update.rule, update.variant, update.perception_coef, update.kl_coef) == ("papo", "grpo", 0.02, 0.01)
        assert (update.corruption.kind, update.corruption.fraction, update.corruption.cell) == ("patches", 0.6, 14)
        assert (update.choices().clip_low, update.choices().clip_high) == (0.2, 0.3)
        assert (rollout.prompts_per_step, rollout.samples_per_prompt, rollout.max_new_tokens) == (384, 5, 2048)
        assert (learner.lr, learner.weight_decay, learner.minibatches) == (1e-6, 0.01, 3)
        assert (learner.beta1, learner.beta2, learner.max_grad_norm) == (0.9, 0.999, 1.0)
        assert (learner.schedule, learner.warmup_steps, recipe.model.freeze_vision) == ("constant", 0, False)
        assert recipe.data.pixels == (200_704, 1_003_520)
        assert recipe.steps == 2 * 38_870 // 384
        assert {reward.name: reward.weight for reward in recipe.rewards} == {"accuracy": 0.9, "format": 0.1}


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
