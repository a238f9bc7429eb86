"""`rlkl sft`: train a language model on demonstrations."""

from __future__ import annotations

from argparse import Namespace

from reward_models.training.recipe import SftRecipe
from rlkl.recipe.io import load_section
from rlkl.recipe.owner import SFT


def run(options: Namespace) -> int:
    """Train, print the report and return 0. The recipe is checked before torch is imported."""
    recipe = load_section(SftRecipe, options.recipe, *options.overrides, command=SFT)
    from reward_models.training.sft import train_sft
    from reward_models.training.show import show_sft

    show_sft(train_sft(recipe))
    return 0
