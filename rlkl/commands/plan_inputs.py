"""Check the models, data and rewards of a recipe before a run, without loading a model or a tokenizer."""

from __future__ import annotations

from collections.abc import Mapping

from rlkl.data.prompts import check_prompts, choose
from rlkl.data.sources import is_local
from rlkl.errors import DataError
from rlkl.models.resolve import check_models
from rlkl.recipe import DataSection, EvalSection, Recipe
from rlkl.recipe.changes import absolute_if_local
from rlkl.recipe.model_limits import check_limits
from rlkl.recipe.secret_values import check_no_secrets
from rlkl.rewards import RewardSet, load_rewards
from rlkl.rewards.loading import check_eval_names
from rlkl.system.machine import this_machine
from rlkl.tracking.sinks.opening import check_sinks
from rlkl.types import Prompt


def check_inputs(recipe: Recipe) -> tuple[str, ...]:
    """Check rewards, engine, sinks, the folders of all models, the rows, and that rewards find their columns.

    Nothing is fetched from huggingface.co; return a warning for each model that is not here, and for rows that the run
    would leave out. A recipe without rewards passes: they may come from Python.

    Raises:
        InputError: the error that `rlkl train` would end with.
    """
    check_no_secrets(recipe)
    wanted = [] if recipe.data.has_pairs else recipe.rewards
    optional = recipe.update.learns_without_rewards
    rewards = load_rewards(wanted, normalize=recipe.scoring.normalize, optional=optional) if wanted else None
    if recipe.rollout.engine != "vllm":  # whose import is slow, and checked by `rlkl doctor`
        from rlkl.rollout.engine import engine_class  # imports torch

        engine_class(recipe.rollout.engine)
    check_sinks(recipe)
    warnings = check_models(recipe)
    check_limits(recipe, absolute_if_local(recipe.model.path), this_machine())
    prompts, left_out = _read(
        recipe.data, "data.source", {**recipe.update.answer_columns, **recipe.update.wording_columns}
    )
    warnings = [*warnings, *left_out]
    if rewards is not None:
        warnings += rewards.check(prompts)
    if recipe.eval is not None and recipe.eval_data is not None:
        warnings += _check_evaluation(recipe, recipe.eval, recipe.eval_data, rewards)
    return tuple(warnings)


def _read(section: DataSection, key: str, answers: Mapping[str, str]) -> tuple[list[Prompt], list[str]]:
    """Return the prompts of a section if its data are here, and a warning if rows are left out.

    ``answers``: columns that the rule reads, by their keys of the recipe.
    """
    if not is_local(section):
        return [], []
    prompts, report = check_prompts(section, answers)
    return prompts, [] if report.kept == report.total else [f"{key} = {section.source}: {report}"]


def _check_evaluation(recipe: Recipe, section: EvalSection, data: DataSection, rewards: RewardSet | None) -> list[str]:
    """Check the held-out prompts and the rewards of the evaluation; return warnings.

    Rewards from Python are not known here.
    """
    if section.rewards:
        rewards = load_rewards(section.rewards, for_evaluation=True, key="eval.rewards")
    elif rewards is not None:
        check_eval_names(rewards.rewards)
    try:
        prompts, warnings = _read(data, "eval.data.source", {})
    except DataError as error:
        raise DataError(f"eval.data: {error}") from error
    if rewards is not None:
        warnings += rewards.check(choose(prompts, section.limit), of="eval.data")
    return warnings
