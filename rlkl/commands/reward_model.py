"""`rlkl reward-model`: train one or two reward models from preferences."""

from __future__ import annotations

from argparse import Namespace

from reward_models.training.recipe import RewardModelRecipe
from rlkl.recipe.io import load_section
from rlkl.recipe.owner import REWARD_MODEL


def run(options: Namespace) -> int:
    """Train, print the report and return 0. The recipe is checked before torch is imported."""
    recipe = load_section(RewardModelRecipe, options.recipe, *options.overrides, command=REWARD_MODEL)
    from reward_models.training.reward_model import train_reward_model
    from reward_models.training.show import show_reward_models

    show_reward_models(train_reward_model(recipe))
    return 0
