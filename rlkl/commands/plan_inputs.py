"""Check the models, data and rewards of a recipe before a run, without loading a model or a tokenizer."""

from __future__ import annotations

from rlkl.data.prompts import check_prompts
from rlkl.data.sources import is_local
from rlkl.models.resolve import check_models
from rlkl.recipe import Recipe
from rlkl.recipe.changes import absolute_if_local
from rlkl.recipe.model_limits import check_limits
from rlkl.rewards import load_rewards
from rlkl.system.machine import this_machine


def check_inputs(recipe: Recipe) -> tuple[str, ...]:
    """Check the rewards, the folders of all models, the rows of the data, and that rewards find their columns.

    Nothing is fetched from huggingface.co; return a warning for each model that is not here. A recipe without rewards
    passes: they may come from Python.

    Raises:
        InputError: the error that `rlkl train` would end with.
    """
    wanted = [] if recipe.data.has_pairs else recipe.rewards
    rewards = load_rewards(wanted, normalize=recipe.scoring.normalize) if wanted else None
    warnings = check_models(recipe)
    check_limits(recipe, absolute_if_local(recipe.model.path), this_machine())
    prompts = check_prompts(recipe.data) if is_local(recipe.data) else []
    if rewards is not None:
        rewards.check(prompts[:2])
    return tuple(warnings)
