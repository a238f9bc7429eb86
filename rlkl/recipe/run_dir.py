"""The folder of a run: which one, and what is in it from the start."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Protocol

from rlkl.errors import CheckpointError, InputError, RunInUseError
from rlkl.recipe import RunSection
from rlkl.recipe.run_lock import LOCK_FILE, RunLock, lock_run_dir

RECIPE_FILE = "recipe.yaml"
METRICS_FILE = "metrics.jsonl"
_WRITTEN_BEFORE_STEPS = {RECIPE_FILE, METRICS_FILE, "wandb"}
"""Left by a run whose actors did not start; the next run may take the folder."""


class HasRun(Protocol):
    """A recipe of any command."""

    @property
    def run(self) -> RunSection: ...


def new_run_dir(recipe: HasRun, *, resumable: bool = True) -> Path:
    """Return the unused folder that a new run would get, without creating it.

    It is ``run.dir`` if that is set, else ``runs/<name>``, or ``runs/<name>-2`` and so on if that is taken.

    Raises `InputError` if ``run.dir`` was spelled out and already holds something: a run never overwrites another.
    ``resumable``: the message may advise to resume that other run.
    """
    if recipe.run.dir is not None:
        chosen = Path(recipe.run.dir)
        if _is_taken(chosen):
            raise _taken(chosen, resumable=resumable)
        return chosen
    return next(folder for folder in _default_folders(recipe.run.name) if not _is_taken(folder))


def claim_run_dir(recipe: HasRun, *, resumable: bool = True) -> RunLock:
    """Make the folder of `new_run_dir` and lock it, so that a run that starts at the same time gets another one.

    Raises `InputError` like `new_run_dir`, or if the folder cannot be made; `RunInUseError` if another process has just
    claimed a ``run.dir`` that was spelled out.
    """
    if recipe.run.dir is not None:
        lock = _claim(Path(recipe.run.dir))
        if lock is None:
            raise _taken(Path(recipe.run.dir), resumable=resumable)
        return lock
    for folder in _default_folders(recipe.run.name):
        try:
            lock = _claim(folder)
        except RunInUseError:
            continue
        if lock is not None:
            return lock
    raise AssertionError("folder names never end")


def write_recipe(run_dir: Path, text: str) -> None:
    """Write the recipe of a run: whole, or not at all. Raises `InputError` if the folder cannot be written to."""
    path = run_dir / RECIPE_FILE
    aside = path.with_name(f".writing-{RECIPE_FILE}")
    try:
        aside.write_text(text, encoding="utf-8")
        aside.replace(path)
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error}); choose another folder with run.dir") from error


def recipe_path(run_dir: Path) -> Path:
    """Return the path of an earlier run's resolved recipe; raises `CheckpointError` if ``run_dir`` has none."""
    path = run_dir / RECIPE_FILE
    if not path.is_file():
        raise CheckpointError(
            f"{run_dir} is not the folder of a run: it has no {RECIPE_FILE}. Give the folder that `rlkl train` named, "
            "such as runs/quickstart"
        )
    return path


def _default_folders(name: str) -> Iterator[Path]:
    first = Path("runs") / name
    yield first
    for number in count(2):
        yield first.with_name(f"{name}-{number}")


def _claim(folder: Path) -> RunLock | None:
    """Make and lock a folder; None if it is taken."""
    if _is_taken(folder):
        return None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = lock_run_dir(folder)
    except OSError as error:
        raise InputError(f"the run folder {folder} cannot be made ({error}); choose another with run.dir") from error
    if _is_taken(folder):  # another run used the folder between the check and the lock
        lock.release()
        return None
    return lock


def _taken(folder: Path, *, resumable: bool) -> InputError:
    advice = f", or go on with that run: rlkl train --resume {folder}" if resumable else ""
    return InputError(f"run.dir = {str(folder)!r} already holds files; choose another folder{advice}")


def _is_taken(folder: Path) -> bool:
    """Return whether a folder holds files that a new run must not overwrite. A lock or a run without a step may go."""
    if not folder.is_dir():
        return folder.exists()
    files = {path.name: path for path in folder.iterdir() if path.name != LOCK_FILE}
    metrics = files.get(METRICS_FILE)
    has_steps = metrics is not None and metrics.stat().st_size > 0
    never_started = RECIPE_FILE in files and files.keys() <= _WRITTEN_BEFORE_STEPS and not has_steps
    return bool(files) and not never_started
