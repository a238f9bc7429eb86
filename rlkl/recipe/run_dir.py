"""The folder of a run: which one, and what is in it from the start."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Protocol

from rlkl.errors import CheckpointError, InputError, RunInUseError, did_you_mean
from rlkl.recipe import RunSection
from rlkl.recipe.owner import other_owner, refusal
from rlkl.recipe.run_lock import LOCK_FILE, RunLock, lock_run_dir

RECIPE_FILE = "recipe.yaml"
METRICS_FILE = "metrics.jsonl"
EVAL_FILE = "eval.jsonl"
NO_CHECKPOINT = "there is no checkpoint yet, so start the run anew"
FOLDER_MODE = 0o700
"""Prompts, completions and tracebacks may be confidential, so only this user may read a run that rlkl makes."""
_WRITTEN_BEFORE_STEPS = {RECIPE_FILE, METRICS_FILE, EVAL_FILE, "wandb", "tensorboard"}
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
        if is_taken(chosen):
            raise _taken(chosen, resumable=resumable)
        _check_can_be_made(chosen)
        return chosen
    return next(folder for folder in _default_folders(recipe.run.name) if not is_taken(folder))


def claim_run_dir(recipe: HasRun, *, resumable: bool = True) -> RunLock:
    """Make the folder of `new_run_dir` and lock it, so that a run that starts at the same time gets another one.

    Other users cannot read a folder that is made here. An empty ``run.dir`` that is there keeps its mode.

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
    """Return the path of an earlier run's resolved recipe.

    Raises `CheckpointError` if ``run_dir`` has none, or if it is the folder of another command than `rlkl train`.
    """
    path = run_dir / RECIPE_FILE
    if not path.is_file():
        raise CheckpointError(
            f"{run_dir} is not the folder of a run: it has no {RECIPE_FILE}. Give the folder that `rlkl train` named; "
            f"{_runs_beside(run_dir)}"
        )
    if owner := other_owner(path):
        raise CheckpointError(refusal(run_dir, owner))
    return path


def _runs_beside(run_dir: Path) -> str:
    """Return the end of a message about a folder that is no run: the runs beside it."""
    runs = [path.parent.name for path in run_dir.parent.glob(f"*/{RECIPE_FILE}")]
    if not runs:
        return f"'{run_dir.parent.absolute()}' holds no run"
    return did_you_mean(run_dir.name, runs, folder=run_dir.parent)


def has_checkpoint(run_dir: Path) -> bool:
    """Return whether a run has a checkpoint to go on from."""
    return bool(numbered(run_dir / "checkpoints", "step_*"))


def start_anew(run_dir: Path) -> str:
    """Return the command that starts the run in ``run_dir`` from its beginning, in another folder."""
    return f"rlkl train {run_dir / RECIPE_FILE} run.dir=NEW_FOLDER"


def numbered(folder: Path, pattern: str) -> list[tuple[int, Path]]:
    """Return what a folder of a run holds by step, with its numbers, in the order of the numbers.

    ``pattern``: the names, with ``*`` for the number, such as ``step_*.parquet``. Names sort wrongly: ``step_1000000``
    comes before ``step_999999``.
    """
    before, _, after = pattern.partition("*")
    found = [(path.name.removeprefix(before).removesuffix(after), path) for path in folder.glob(pattern)]
    return sorted((int(number), path) for number, path in found if number.isdecimal())


def _default_folders(name: str) -> Iterator[Path]:
    first = Path("runs") / name
    yield first
    for number in count(2):
        yield first.with_name(f"{name}-{number}")


def _claim(folder: Path) -> RunLock | None:
    """Make and lock a folder; None if it is taken."""
    if is_taken(folder):
        return None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=FOLDER_MODE, exist_ok=True)
        lock = lock_run_dir(folder)
    except OSError as error:
        raise InputError(f"the run folder {folder} cannot be made ({error}); choose another with run.dir") from error
    if is_taken(folder):  # another run used the folder between the check and the lock
        lock.release()
        return None
    return lock


def _taken(folder: Path, *, resumable: bool) -> InputError:
    if not folder.is_dir():
        return InputError(f"run.dir = {str(folder)!r} is a file; choose another folder")
    can_go_on = resumable and has_checkpoint(folder)
    advice = f", or go on with that run: rlkl train --resume {folder}" if can_go_on else ""
    return InputError(f"run.dir = {str(folder)!r} already holds files; choose another folder{advice}")


def _check_can_be_made(folder: Path) -> None:
    """Raise `InputError` if a folder cannot be made, or not written to, as far as that shows without making it."""
    above = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not above.is_dir():
        problem = f"{above} is a file"
    elif not os.access(above, os.W_OK | os.X_OK):
        problem = f"{above} is read-only for you"
    else:
        return
    raise InputError(f"the run folder {folder} cannot be made ({problem}); choose another with run.dir")


def is_taken(folder: Path) -> bool:
    """Return whether a folder holds files that a new run must not overwrite. A lock or a run without a step may go."""
    if not folder.is_dir():
        return folder.exists()
    files = {path.name: path for path in folder.iterdir() if path.name != LOCK_FILE}
    metrics = files.get(METRICS_FILE)
    has_steps = metrics is not None and metrics.stat().st_size > 0
    never_started = RECIPE_FILE in files and files.keys() <= _WRITTEN_BEFORE_STEPS and not has_steps
    return bool(files) and not never_started
