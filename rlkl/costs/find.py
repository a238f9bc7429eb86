"""Find the shape of a model without loading it: in its folder, in the hub's cache here, or in the built-in table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rlkl.costs.known_shapes import known_names, known_shape
from rlkl.costs.shapes import ModelShape, shape_of_config
from rlkl.errors import InputError, did_you_mean


def read_shape(path: str | Path) -> ModelShape:
    """Read the shape from a config.json or from the folder that holds one; raises `InputError`."""
    file = Path(path).expanduser()
    file = file / "config.json" if file.is_dir() else file
    return shape_of_config(_read(file), str(path))


def find_shape(model: str, given: str | None = None) -> tuple[ModelShape, str]:
    """Return a model's shape and the place it comes from.

    Args:
        model: A folder, or a name on the Hugging Face hub.
        given: A config.json, or a folder with one, that takes precedence.

    Raises:
        InputError: no config.json and no row of the table describes the model, or it is of a kind unknown here.
    """
    if given is not None:
        return read_shape(given), given
    if (Path(model).expanduser() / "config.json").is_file():
        return read_shape(model), str(Path(model) / "config.json")
    if (cached := _cached_config(model)) is not None:
        return shape_of_config(_read(cached), model), "the config.json in the hub's cache"
    if (known := known_shape(model)) is not None:
        return known, "the built-in table"
    raise InputError(
        f"the shape of the model {model!r} is not known: this machine has no config.json of it, and the built-in table "
        f"has no such row. Name a config.json or a folder with one (--shape); {did_you_mean(model, known_names())}"
    )


def config_of(model: str) -> dict[str, Any] | None:
    """Return the values of a model's config.json, from its folder or from the hub's cache; None if it is not here."""
    file = Path(model).expanduser() / "config.json"
    found = file if file.is_file() else _cached_config(model)
    return None if found is None else _read(found)


def parameters_of(model: str) -> int:
    """Return a model's parameters, or 0 if its shape is not known here."""
    try:
        return find_shape(model)[0].parameters
    except InputError:
        return 0


def _read(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{file} cannot be read as a model's config.json: {error}") from error
    if not isinstance(values, dict):
        raise InputError(f"{file} holds {type(values).__name__}, expected the values of a model's config.json")
    return values


def _cached_config(model: str) -> Path | None:
    """Return the config.json of a hub model that an earlier download has left on this machine."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(model, "config.json")
    except HFValidationError:  # not a name that the hub could have, such as task:arithmetic
        return None
    return Path(found) if isinstance(found, str) else None
