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
from rlkl.recipe.owner import TRAIN, check_owner
from rlkl.schema import Section
from rlkl.updates.custom import is_outside, settings_class

_S = TypeVar("_S", bound=Section)
_PACKAGED = Path(__file__).resolve().parents[1] / "built_in_recipes"
_BUILT_IN = _PACKAGED if _PACKAGED.is_dir() else Path(__file__).resolve().parents[2] / "recipes"
"""An installed package holds the recipes (setup.py); a source tree has them in ``recipes/``."""
_NO_RECIPES = {"wandb_sweep"}
"""Files of other programs beside the recipes."""
_OVERRIDE = re.compile(r"(?P<key>[A-Za-z_]\w*(?:\[\d+\]|\.[A-Za-z_]\w*)*)=(?P<value>.*)", re.DOTALL)


def load_recipe(path: str | Path, *overrides: str) -> Recipe:
    """Read a recipe and apply ``section.key=value`` overrides in order.

    Args:
        path: A YAML file, or the bare name of one in ``recipes/`` (``quickstart``).
        overrides: Values are YAML: ``learner.lr=1e-4``, ``rewards[0].weight=2``, ``model.lora={rank: 8}``.

    Raises:
        RecipeError: The file is absent or not YAML, or keys or values are not allowed. Lists every problem found.
    """
    values, source = read_values(path, *overrides, command=TRAIN)
    return recipe_from(values, source)


def load_section(section: type[_S], path: str | Path, *overrides: str, command: str | None = None) -> _S:
    """Read the recipe of another command; ``section`` is its schema. Otherwise like `load_recipe`."""
    values, source = read_values(path, *overrides, command=command)
    try:
        return section.model_validate(values)
    except ValidationError as error:
        raise RecipeError(explain_whole(error, source, section)) from None


def read_values(path: str | Path, *overrides: str, command: str | None = None) -> tuple[dict[str, Any], str]:
    """Read a recipe and apply overrides without checking the values; return them, and the recipe's name in messages.

    With a ``command``, raise `RecipeError` if the file is a recipe of another command.
    """
    file = _find(path)
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(
            f"{file}: cannot be read as UTF-8 text ({error}); save it as UTF-8, and see that you may read it"
        ) from error
    values = parse_yaml(text, str(file))
    if not isinstance(values, dict):
        hint = "the file is empty" if values is None else "write KEY: VALUE, one a line"
        raise RecipeError(
            f"{file}: expected sections (model, data, ...), got {values!r}: {hint}. `rlkl keys` lists the keys of a "
            "recipe"
        )
    if command is not None:
        check_owner(values, path, file, command)
    apply_overrides(values, overrides)
    return values, f"{file} with overrides" if overrides else str(file)


def apply_overrides(values: dict[str, Any], overrides: Sequence[str]) -> None:
    """Set the values of overrides in place; raise `RecipeError` for one that has no place."""
    for override in overrides:
        _apply(values, override)


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


def built_in(name: str, folder: str = "") -> Path | None:
    """Return the file with that name in ``recipes/``, or in a folder of it; None if there is none."""
    file = _BUILT_IN / folder / f"{name}.yaml"
    return file if file.is_file() and name not in _NO_RECIPES else None


def built_in_names(folder: str = "") -> list[str]:
    """List the names for which `built_in` returns a file."""
    return sorted(file.stem for file in (_BUILT_IN / folder).glob("*.yaml") if file.stem not in _NO_RECIPES)


def _find(path: str | Path) -> Path:
    file = Path(path)
    if file.is_file():
        return file
    if file.is_dir():
        raise RecipeError(
            f"{file} is a folder; a recipe is a YAML file (to continue a run: rlkl train --resume {file})"
        )
    if file.name == str(path) and not file.suffix and (named := built_in(file.name)) is not None:
        return named
    known = built_in_names()
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
            raise RecipeError(
                f"override '{override}': the recipe has no such place; it holds {place!r} there{_entries(place, part)}"
            )
        if following is None:
            place[part] = parse_yaml(match["value"], f"override '{override}'")
        elif isinstance(part, str) and place.get(part) is None:
            place[part] = {} if isinstance(following, str) else []
        place = place[part]


def _entries(place: Any, part: int | str) -> str:
    """Return the numbers that a list has, for the end of a message; empty if ``part`` is no number of a list."""
    if not isinstance(place, list) or not isinstance(part, int):
        return ""
    return f", with the numbers 0 to {len(place) - 1}" if place else ", an empty list"
