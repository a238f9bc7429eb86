"""The folder of a run: which one, and what is in it from the start."""

from __future__ import annotations

from pathlib import Path

from rlkl.errors import CheckpointError, InputError
from rlkl.recipe import Recipe

RECIPE_FILE = "recipe.yaml"


def new_run_dir(recipe: Recipe) -> Path:
    """An unused folder for a new run: ``run.dir``, else ``runs/<name>``, or ``runs/<name>-2`` and so on where taken.

    Raises `InputError` when ``run.dir`` was spelled out and already holds something: a run never overwrites another.
    """
    if recipe.run.dir is not None:
        chosen = Path(recipe.run.dir)
        if _is_taken(chosen):
            raise InputError(
                f"run.dir = {str(chosen)!r} already holds files; choose another folder, or go on with that run: "
                f"rlkl train --resume {chosen}"
            )
        return chosen
    first = Path("runs") / recipe.run.name
    number, chosen = 2, first
    while _is_taken(chosen):
        number, chosen = number + 1, first.with_name(f"{first.name}-{number}")
    return chosen


def recipe_path(run_dir: Path) -> Path:
    """The resolved recipe of an earlier run; raises `CheckpointError` when ``run_dir`` holds none."""
    path = run_dir / RECIPE_FILE
    if not path.is_file():
        raise CheckpointError(
            f"{run_dir} is not the folder of a run: it has no {RECIPE_FILE}. Give the folder that `rlkl train` named, "
            "such as runs/quickstart"
        )
    return path


def _is_taken(folder: Path) -> bool:
    return folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
