"""The recipes that come with rlkl."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlkl.commands.plan import make_plan
from rlkl.commands.plan_cluster import plan_cluster
from rlkl.costs.gpus import gpu_named
from rlkl.errors import RecipeError
from rlkl.recipe.io import built_in, built_in_names, load_recipe
from rlkl.system.machine import Machine
from rlkl.updates.settings import PapoSettings

RECIPES = Path(__file__).parents[3] / "recipes"
FOR_OTHER_COMMANDS = {"reviews_reward_model", "reviews_sft", "wandb_sweep"}
NAMES = sorted({file.stem for file in RECIPES.glob("*.yaml")} - FOR_OTHER_COMMANDS)
ONLINE = ["reviews_grpo", "reviews_listwise", "reviews_ppo", "reviews_sparsepo", "reviews_superhf"]


LAPTOP = Machine(cpus=4, memory_gib=16.0, gpus=())
ON_GPUS = {
    "gsm8k_grpo_qwen3_0_6b": (4, "H100"),
    "gsm8k_grpo_qwen3_1_7b": (4, "H100"),
    "gsm8k_ppo": (4, "H100"),
    "hh_sparsepo": (1, "H100"),
    "hh_superhf": (3, "H100"),
    "imdb_sparsepo": (1, "H100"),
    "math_dapo_7b": (8, "H100"),
    "papo_qwen2_5_vl_3b": (4, "H200"),
    "papo_qwen2_5_vl_7b": (4, "B200"),
    "reasoning_gym_grpo": (4, "H100"),
}
"""The GPUs that each recipe of a real model is for."""
LIKE_THE_PAPER = "update.mask_init = paper"
KNOWN_WARNINGS = {
    # The recipe shows what the warning says.
    "arithmetic_distill_gate": ["update.gate_tokens = 8"],
    "hh_sparsepo": [LIKE_THE_PAPER],
    "imdb_sparsepo": [LIKE_THE_PAPER],
    # DAPO keeps no reference, and its variant of GRPO takes 16 optimizer steps a batch with both sides clipped.
    "math_dapo_7b": ["update.kl_coef = 0 and learner.track_reference_kl = false"],
    # PAPO's authors ran this, with the code that makes it a constant.
    "papo_qwen2_5_vl_7b": ["update.corrupted_entropy_coef without update.recompute"],
}


def machine_for(name: str) -> Machine:
    """The machine that a recipe is for."""
    if name not in ON_GPUS:
        return LAPTOP
    count, kind = ON_GPUS[name]
    return Machine(cpus=64, memory_gib=1024.0, gpus=(f"{kind}, {gpu_named(kind).mib} MiB",) * count)


def test_every_recipe_of_a_real_model_names_its_gpus():
    paths = {name: load_recipe(str(RECIPES / f"{name}.yaml")).model.path for name in NAMES}
    assert {name for name, path in paths.items() if not path.startswith("task:")} == ON_GPUS.keys()


@pytest.mark.parametrize("name", ON_GPUS)
def test_a_recipe_of_a_real_model_fits_its_gpus_and_leaves_none_idle(name):
    count, kind = ON_GPUS[name]
    planned = plan_cluster(load_recipe(str(RECIPES / f"{name}.yaml")), gpus=count, gpu=gpu_named(kind))
    assert planned.refusals == ()
    assert planned.today.used == count
    assert [warning.partition(":")[0] for warning in planned.warnings] == KNOWN_WARNINGS.get(name, [])


@pytest.mark.parametrize(
    ("name", "count", "overrides"),
    [
        ("papo_qwen2_5_vl_7b", 4, ["model.lora={rank: 64, alpha: 128}", "learner.lr=1e-5"]),
    ],
)
def test_the_adapters_that_a_recipe_proposes_fit_smaller_gpus(name, count, overrides):
    recipe = load_recipe(str(RECIPES / f"{name}.yaml"), *overrides)
    assert plan_cluster(recipe, gpus=count, gpu=gpu_named("H100")).refusals == ()


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_called_after_its_file_and_needs_no_other_warning(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(str(RECIPES / f"{name}.yaml"))
    assert recipe.run.name == name
    warnings = make_plan(recipe, machine_for(name)).warnings
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

    assert [name for name in NAMES if name.startswith("reviews")] == sorted(
        [*ONLINE, "reviews_average", "reviews_dpo", "reviews_lagged", "reviews_replay"]
    )
    assert all(shared(name) == shared(ONLINE[0]) for name in ONLINE)
    rules = {load_recipe(str(RECIPES / f"{name}.yaml")).update.rule for name in ONLINE}
    assert len(rules) == len(ONLINE)


def test_the_two_anchors_are_all_that_the_recipe_of_the_average_changes():
    average, plain = (load_recipe(str(RECIPES / f"reviews_{name}.yaml")) for name in ("average", "grpo"))
    shared = {"run", "update"}
    assert average.model_dump(exclude=shared) == plain.model_dump(exclude=shared)
    assert average.update.rule == "grpo"
    assert [(term.term, term.frozen_model) for term in average.update.terms] == [("kl", "reference"), ("kl", "average")]


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


def test_superhfs_recipe_carries_its_papers_settings():
    recipe = load_recipe(str(RECIPES / "hh_superhf.yaml"))
    rollout, learner, lora = recipe.rollout, recipe.learner, recipe.model.lora
    assert lora is not None
    assert (lora.rank, lora.alpha, lora.target_modules) == (4, 32, ["q_proj", "v_proj"])
    assert recipe.steps * rollout.prompts_per_step == 10_000
    assert (rollout.samples_per_prompt, rollout.max_new_tokens, rollout.temperature) == (16, 64, 1)
    assert (learner.lr, learner.schedule, learner.warmup_steps, learner.weight_decay) == (2e-5, "cosine", 32, 0.01)
    assert recipe.update.model_dump()["kl_coef"] == 0.35
    assert recipe.update.model_dump()["filter"] == {"keep": "top_k", "value": 1}


@pytest.mark.parametrize(
    ("name", "beta", "lr", "pairs", "l1"), [("imdb_sparsepo", 0.8, 1e-6, 64, 0), ("hh_sparsepo", 0.1, 5e-7, 128, 0.001)]
)
def test_sparsepos_recipes_carry_their_papers_settings(name, beta, lr, pairs, l1):
    recipe = load_recipe(str(RECIPES / f"{name}.yaml"))
    update = recipe.update.model_dump()
    assert (update["mask"], update["beta"], update["l1_reward"], update["l1_kl"]) == ("sparse_common", beta, l1, l1)
    assert (update["mask_init"], update["mask_weight_decay"]) == ("paper", 0.01)
    assert (recipe.learner.lr, recipe.rollout.prompts_per_step, recipe.learner.schedule) == (lr, pairs, "cosine")
    assert recipe.learner.warmup_steps == round(recipe.steps / 10)


def test_dapos_recipe_carries_its_papers_settings():
    recipe = load_recipe(str(RECIPES / "math_dapo_7b.yaml"))
    choices = recipe.update.resolved().model_dump()
    assert (choices["clip_low"], choices["clip_high"], choices["aggregation"]) == (0.2, 0.28, "token_mean")
    assert (choices["drop_uniform_groups"], choices["kl_coef"]) == (True, 0)
    rollout = recipe.rollout
    assert (rollout.prompts_per_step, rollout.samples_per_prompt, recipe.learner.minibatches) == (512, 16, 16)
    limit, buffer = (recipe.rewards[1].settings[key] for key in ("limit", "buffer"))
    assert (recipe.rewards[1].name, limit + buffer) == ("overlong", rollout.max_new_tokens)


def test_a_sweep_of_wandb_is_no_recipe():
    assert "quickstart" in built_in_names()
    assert "wandb_sweep" not in built_in_names()
    assert built_in("wandb_sweep") is None
    with pytest.raises(RecipeError, match=r"no recipe at wandb_sweep; it can be a path") as caught:
        load_recipe("wandb_sweep")
    assert "wandb_sweep" not in str(caught.value).partition(":")[2]
