"""Read and write recipes: YAML, ``section.key=value`` overrides, and errors that name the key."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from rlkl.errors import RecipeError
from rlkl.recipe import Recipe
from rlkl.recipe.core_yaml import parse_yaml, write_value, write_yaml
from rlkl.recipe.explain import explain, explain_outside, explain_whole
from rlkl.schema import Section
from rlkl.updates.custom import is_outside, settings_class

_S = TypeVar("_S", bound=Section)
_PACKAGED = Path(__file__).resolve().parents[1] / "built_in_recipes"
_BUILT_IN = _PACKAGED if _PACKAGED.is_dir() else Path(__file__).resolve().parents[2] / "recipes"
"""An installed package holds the recipes (setup.py); a source tree has them in ``recipes/``."""
_OVERRIDE = re.compile(r"(?P<key>[A-Za-z_]\w*(?:\[\d+\]|\.[A-Za-z_]\w*)*)=(?P<value>.*)", re.DOTALL)


def load_recipe(path: str | Path, *overrides: str) -> Recipe:
    """Read a recipe and apply ``section.key=value`` overrides in order.

    Args:
        path: A YAML file, or the bare name of one in ``recipes/`` (``quickstart``).
        overrides: Values are YAML: ``learner.lr=1e-4``, ``rewards[0].weight=2``, ``model.lora={rank: 8}``.

    Raises:
        RecipeError: The file is absent or not YAML, or keys or values are not allowed. Lists every problem found.
    """
    values, source = read_values(path, *overrides)
    return recipe_from(values, source)


def load_section(section: type[_S], path: str | Path, *overrides: str) -> _S:
    """Read the recipe of another command; ``section`` is its schema. Otherwise like `load_recipe`."""
    values, source = read_values(path, *overrides)
    try:
        return section.model_validate(values)
    except ValidationError as error:
        raise RecipeError(explain_whole(error, source, section)) from None


def read_values(path: str | Path, *overrides: str) -> tuple[dict[str, Any], str]:
    """Read a recipe and apply overrides without checking the values; return them, and the recipe's name in messages."""
    file = _find(path)
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{file}: cannot be read as UTF-8 text ({error})") from error
    values = parse_yaml(text, str(file))
    if not isinstance(values, dict):
        raise RecipeError(f"{file}: expected sections (model, data, ...), got {values!r}")
    for override in overrides:
        _apply(values, override)
    return values, f"{file} with overrides" if overrides else str(file)


def load_rewards_only(functions: Sequence[str], *overrides: str) -> Recipe:
    """Build a recipe that only has rewards, to score existing data.

    Args:
        functions: As in ``rewards[].function``.
        overrides: Keys of every reward, without the ``rewards[]`` before them: ``mode=process``.

    Raises:
        RecipeError: Lists every problem found.
    """
    values: dict[str, Any] = {"model": {"path": "unused"}, "data": {"source": "unused"}}
    values["rewards"] = [{"function": function} for function in functions]
    for override in overrides:
        for number in range(len(functions)):
            _apply(values, f"rewards[{number}].{override}")
    return recipe_from(values, "rlkl score")


def recipe_from(values: Mapping[str, Any], source: str = "recipe") -> Recipe:
    """Check values that were read elsewhere. ``source`` names them in messages.

    Raises:
        RecipeError: Lists every problem found.
    """
    try:
        return Recipe.model_validate(_with_outside_rule(dict(values), source))
    except ValidationError as error:
        raise RecipeError(explain(error, source)) from None


def _with_outside_rule(values: dict[str, Any], source: str) -> dict[str, Any]:
    """Check ``update`` against the settings of the custom rule, if it names one; return all values."""
    update = values.get("update")
    if not isinstance(update, dict) or not is_outside(update.get("rule")):
        return values
    settings = settings_class(update["rule"])
    try:
        return {**values, "update": settings.model_validate(update)}
    except ValidationError as error:
        raise RecipeError(explain_outside(error, source, settings)) from None


def dump_recipe(recipe: Section) -> str:
    """Write a recipe as YAML with all defaults; reading it gives an equal recipe."""
    return write_yaml(recipe.model_dump())


def as_override(key: str, value: Any) -> str:
    """Return the override that gives ``key`` this value; in a shell it needs quotes around it."""
    return f"{key}={write_value(value)}"


def _find(path: str | Path) -> Path:
    file = Path(path)
    if file.is_file():
        return file
    if file.is_dir():
        raise RecipeError(
            f"{file} is a folder; a recipe is a YAML file (to continue a run: rlkl train --resume {file})"
        )
    if file.name == str(path) and not file.suffix and (named := _BUILT_IN / f"{file}.yaml").is_file():
        return named
    known = sorted(recipe.stem for recipe in _BUILT_IN.glob("*.yaml"))
    near = get_close_matches(file.stem, known) or known
    raise RecipeError(f"no recipe at {file}; it can be a path or the name of a built-in recipe: {', '.join(near)}")


def _apply(values: dict[str, Any], override: str) -> None:
    """Set one value in place; create the sections on the way that the file leaves out."""
    match = _OVERRIDE.fullmatch(override)
    if match is None:
        raise RecipeError(f"override '{override}': expected section.key=value, as in learner.lr=1e-4")
    parts = [int(p[1:-1]) if p.startswith("[") else p for p in re.findall(r"\[\d+\]|\w+", match["key"])]
    place: Any = values
    for part, following in zip(parts, [*parts[1:], None], strict=True):
        fits = isinstance(place, list) if isinstance(part, int) else isinstance(place, dict)
        if not fits or (isinstance(part, int) and part >= len(place)):
            raise RecipeError(f"override '{override}': the recipe has no such place; it holds {place!r} there")
        if following is None:
            place[part] = parse_yaml(match["value"], f"override '{override}'")
        elif isinstance(part, str) and place.get(part) is None:
            place[part] = {} if isinstance(following, str) else []
        place = place[part]
