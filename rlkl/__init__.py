"""rlkl: one interface, many policy-update rules, one KL to compare them by.

Importing this package is quick: the names below load what they need when first used, torch and Ray only when training.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rlkl.analysis.compare import compare
    from rlkl.recipe import Recipe
    from rlkl.recipe.io import load_recipe
    from rlkl.rewards import Reward, reward
    from rlkl.training.setup import train

__all__ = ["Recipe", "Reward", "__version__", "compare", "load_recipe", "reward", "train"]
__version__ = "0.1.0"

_HOMES = {
    "Recipe": "rlkl.recipe",
    "Reward": "rlkl.rewards.function.result",
    "compare": "rlkl.analysis.compare",
    "load_recipe": "rlkl.recipe.io",
    "reward": "rlkl.rewards.function.decorator",
    "train": "rlkl.training.setup",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'rlkl' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)
