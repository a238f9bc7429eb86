"""The folder of a run: which one, and what is in it from the start."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from rlkl.errors import CheckpointError, InputError
from rlkl.recipe import RunSection

RECIPE_FILE = "recipe.yaml"


class HasRun(Protocol):
    """A recipe of any command."""

    @property
    def run(self) -> RunSection: ...


def new_run_dir(recipe: HasRun, *, resumable: bool = True) -> Path:
    """An unused folder for a new run: ``run.dir``, else ``runs/<name>``, or ``runs/<name>-2`` and so on where taken.

    Raises `InputError` when ``run.dir`` was spelled out and already holds something: a run never overwrites another.
    ``resumable``: the message may advise to go on with that other run.
    """
    if recipe.run.dir is not None:
        chosen = Path(recipe.run.dir)
        if _is_taken(chosen):
            advice = f", or go on with that run: rlkl train --resume {chosen}" if resumable else ""
            raise InputError(f"run.dir = {str(chosen)!r} already holds files; choose another folder{advice}")
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
