"""Find the models that a recipe names, and read each once."""

from __future__ import annotations

from collections.abc import Iterator

from rlkl.costs.find import config_of
from rlkl.errors import InputError, RecipeError
from rlkl.models.vocabulary import check_same_tokens
from rlkl.recipe import Recipe
from rlkl.recipe.changes import absolute_if_local
from rlkl.recipe.resolved_model import (
    ModelName,
    ResolvedModel,
    ResolvedModels,
    check_place,
    check_weights,
    read_model,
    warn_unless_here,
)
from rlkl.recipe.weight_files import problem_with_kind
from rlkl.tasks import base_model, model_task, task_name


def resolve_models(recipe: Recipe) -> ResolvedModels:
    """Return all models of a recipe; build a built-in one if it is not built yet. Each folder is read once.

    Raises `RecipeError` if one is missing or unreadable, or if its vocabulary is not the policy's.
    """
    read: dict[str, ResolvedModel] = {}
    found: dict[str, ResolvedModel] = {}
    for name in model_names(recipe):
        path = locate_model(name)
        is_new = path not in read
        if is_new:
            read[path] = read_model(path, name)
            _check_kind(path, name)
        found[name.key] = read[path]
        _check_vocabulary(name, found[name.key], recipe, found["model.path"])
        if is_new:
            check_weights(path, name)
    return ResolvedModels(
        policy=found["model.path"],
        reference=found.get("model.reference"),
        frozen={name: found[f"models.{name}.path"] for name in recipe.models},
    )


def check_models(recipe: Recipe) -> list[str]:
    """Check that the folders of all models are there, without loading, building or fetching anything.

    Return a warning for each model that a run must fetch from huggingface.co first. Raises `RecipeError`.
    """
    warnings: list[str] = []
    for name in model_names(recipe):
        task = task_name(name.value)
        if task is not None:
            _check_task(name, task)
            continue
        path = absolute_if_local(name.value)
        check_place(path, name)
        _check_kind(path, name)
        check_weights(path, name)
        if warning := warn_unless_here(path, name):
            warnings.append(warning)
    return warnings


def model_names(recipe: Recipe) -> Iterator[ModelName]:
    """Yield the keys that name a model with their values, the policy first."""
    yield ModelName(key="model.path", value=recipe.model.path)
    if recipe.model.reference is not None:
        yield ModelName(key="model.reference", value=recipe.model.reference)
    for name, section in recipe.models.items():
        yield ModelName(key=f"models.{name}.path", value=section.path)


def locate_model(name: ModelName) -> str:
    """Return the absolute folder of a model, or its name on huggingface.co; build a built-in one if it is not built.

    Raises `RecipeError` if there is no such built-in model.
    """
    task = task_name(name.value)
    if task is None:
        return absolute_if_local(name.value)
    _check_task(name, task)
    return str(base_model(task))


def _check_task(name: ModelName, task: str) -> None:
    try:
        model_task(task)
    except InputError as error:
        raise RecipeError(f"{name}: {error}") from error


def _check_kind(path: str, name: ModelName) -> None:
    if problem := problem_with_kind(config_of(path) or {}):
        raise RecipeError(f"{name} {problem}. Choose a causal language model, such as Qwen/Qwen3-0.6B")


def _check_vocabulary(name: ModelName, model: ResolvedModel, recipe: Recipe, policy: ResolvedModel) -> None:
    if model.vocabulary != policy.vocabulary:
        raise RecipeError(
            f"{name} has {model.vocabulary} token ids, the policy at model.path = {recipe.model.path!r} has "
            f"{policy.vocabulary}; a KL needs one vocabulary, so name a model of the same family"
        )
    check_same_tokens(str(name.key), model.path, policy.path)
