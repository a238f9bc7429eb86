"""The recipes of a sweep's runs, written beside its plan before the first run, so that a later edit changes none."""

from __future__ import annotations

import hashlib
from pathlib import Path

from rlkl.analysis.sweep_plan import PlannedArm, Point, SweepPlan
from rlkl.errors import InputError
from rlkl.recipe import Recipe
from rlkl.recipe.io import dump_recipe, load_recipe, recipe_from

FOLDER = "recipes"
"""Folder within the sweep's."""


def point_file(root: Path, arm: PlannedArm, point: Point) -> Path:
    """Return the file with the recipe of a point; seed, name and folder of a run come on top."""
    return root / FOLDER / arm.folder / f"{point.name}.yaml"


def evaluation_file(root: Path, model: str) -> Path:
    """Return the file with the recipe that evaluates ``model``, a name of `SweepPlan.models`, and what it became."""
    return root / FOLDER / f"evaluate-{model}.yaml"


def seedless(recipe: Recipe) -> Recipe:
    """Return the recipe without seed, name and folder."""
    return recipe.model_copy(update={"seed": 0, "run": type(recipe.run)()})


def hash_of(recipe: Recipe) -> str:
    """Return a hash of a recipe without seed, name and folder."""
    return hashlib.sha256(dump_recipe(seedless(recipe)).encode()).hexdigest()[:16]


def write_recipes(plan: SweepPlan, root: Path) -> None:
    """Write all recipes; raise `InputError` if one is there already and is not the plan's."""
    for file, recipe in recipes_of(plan, root):
        _write(file, seedless(recipe))
    if plan.evaluate is not None:
        for model, values in plan.evaluate["recipes"].items():
            _write(evaluation_file(root, model), recipe_from(values, "evaluate"))


def recipes_of(plan: SweepPlan, root: Path) -> list[tuple[Path, Recipe]]:
    """Return the file and the recipe of each point; raise like `write_recipes`."""
    found = []
    for arm in plan.arms:
        for point in arm.points:
            file = point_file(root, arm, point)
            recipe = load_recipe(file) if file.exists() else load_recipe(arm.recipe, *point.overrides)
            if hash_of(recipe) != point.recipe_hash:
                raise InputError(
                    f"{file} is not the recipe that plan.json was made for: it was changed since. Remove it and start "
                    "the sweep again, or give another name (name=...) for a new sweep"
                )
            found.append((file, recipe))
    return found


def _write(file: Path, recipe: Recipe) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(dump_recipe(recipe), encoding="utf-8")
