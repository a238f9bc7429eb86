"""Refuse recipes that hold a secret: recipe.yaml, checkpoints, W&B and reports all record the recipe."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rlkl.errors import RecipeError
from rlkl.schema import Section
from rlkl.system.secret_names import Secrecy, deciding_name, secrecy_of
from rlkl.system.secret_texts import secrets_in_setting


def check_no_secrets(recipe: Section) -> None:
    """Raise `RecipeError` if a value of the recipe is a secret. The message names the key and leaves the value out."""
    for key, kind in _secrets(recipe.model_dump(), "", ""):
        raise RecipeError(
            f"{key} holds {kind}. A recipe must not hold secrets: the run folder, its checkpoints, W&B and reports "
            "record it. Put the secret into an environment variable, let the code read it from there, and name "
            "only the variable in the recipe, as api_key_variable of reward_models:Judge does"
        )


def _secrets(value: Any, key: str, name: str) -> Iterator[tuple[str, str]]:
    """Yield the key and the kind of each secret in plain values; ``name``: the name that decides for this value."""
    if isinstance(value, Mapping):
        for own, inner in value.items():
            yield from _secrets(own, f"a key of {key}" if key else "a key", "") if isinstance(own, str) else ()
            yield from _secrets(inner, f"{key}.{own}".lstrip("."), deciding_name(name, str(own), value))
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            yield from _secrets(inner, f"{key}[{number}]", name)
    elif isinstance(value, str):
        yield from ((key, found.kind) for found in secrets_in_setting(name, value))
    elif isinstance(value, int | float) and not isinstance(value, bool) and secrecy_of(name) is Secrecy.YES:
        yield key, "a secret"
