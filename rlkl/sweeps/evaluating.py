"""The recipe by which a sweep evaluates all policies that started from one model, and that model itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rlkl.errors import InputError
from rlkl.recipe import Recipe
from rlkl.recipe.changes import plain_values
from rlkl.recipe.evaluated import NO_REFERENCE, SECTIONS, check_read, read_by_evaluation
from rlkl.recipe.io import apply_overrides, as_override, recipe_from
from rlkl.sweeps.settings import EvaluateSection

_SAME = ("dtype", "reference")
_OF_TRAINING = ("source", "subset", "split", "shuffle", "max_bad_fraction")
"""Keys of ``data`` that may differ between the arms: the evaluation has prompts of its own."""


def evaluation_recipe(recipe: Recipe, section: EvaluateSection, settings: Mapping[str, Any]) -> Recipe:
    """Return the recipe of `rlkl eval` for a model: how prompts are read and sampled as in ``recipe``, the rest as in
    ``section``.

    ``settings``: ``rewards``, ``max_new_tokens`` and ``engine``, the same for all models. Raises `InputError` for a key
    of ``evaluate.set`` that is unknown or has no effect.
    """
    check_read([key for key in section.set if key not in SECTIONS], reader="evaluate.set")
    values = read_by_evaluation(plain_values(recipe))
    values["seed"] = section.seed
    values["model"] = {name: values["model"][name] for name in ("path", *_SAME)}
    values["rollout"] |= {name: settings[name] for name in ("max_new_tokens", "engine")}
    if settings["engine"] != "vllm":
        values["rollout"] = {k: v for k, v in values["rollout"].items() if k not in ("vllm", "tensor_parallel")}
    values["eval"] = {
        "data": section.data.model_dump(),
        "samples": section.samples,
        "greedy": False,
        "rewards": settings["rewards"],
    }
    if section.limit is not None:
        values["eval"]["limit"] = section.limit
    apply_overrides(values, [as_override(key, value) for key, value in section.set.items()])
    return recipe_from(values, "evaluate")


def reference_of(recipe: Recipe) -> str:
    """Return the model that `rlkl eval` measures the KL to, or `NO_REFERENCE`: it can only do so at temperature 1."""
    assert recipe.eval is not None
    return (recipe.model.reference or recipe.model.path) if recipe.eval.temperature == 1 else NO_REFERENCE


def unequal_reading(recipes: Sequence[tuple[str, Recipe]]) -> Iterator[str]:
    """Warn of keys by which arms read their prompts otherwise than the first arm with their model, as all are
    evaluated.

    ``recipes``: name and recipe of each arm.
    """
    firsts: dict[str, tuple[str, Recipe]] = {}
    for name, recipe in recipes:
        first, other = firsts.setdefault(recipe.model.path, (name, recipe))
        keys = sorted(key for key, value in _reading(recipe).items() if _reading(other)[key] != value)
        if keys:
            yield f"{name} differs from {first} in {', '.join(keys)}; both are evaluated as {first} is trained"


def check_figure(key: str, names: Sequence[str]) -> None:
    """Raise `InputError` if ``select.by`` names no figure of the evaluation; ``names``: of its rewards."""
    name = key.removeprefix("eval/")
    plain = {"mean", "greedy"}
    if name in plain or name.startswith("pass@") or any(name == n or name.startswith(f"{n}/") for n in names):
        return
    raise InputError(
        f"select.by = {key}: the evaluation has no such figure; available: "
        f"{', '.join(f'eval/{known}' for known in (*names, *sorted(plain)))}"
    )


def _reading(recipe: Recipe) -> dict[str, Any]:
    values = read_by_evaluation(plain_values(recipe))
    found = {f"data.{name}": value for name, value in values["data"].items() if name not in _OF_TRAINING}
    found |= {f"model.{name}": values["model"][name] for name in _SAME}
    return found | {"rollout.stop": values["rollout"]["stop"]}
