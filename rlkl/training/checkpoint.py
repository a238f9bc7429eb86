"""Checkpoints on disk: written aside, synced, checked, renamed; complete or absent, never half.

A checkpoint is complete if every file of its manifest is there, as this process sees the disk.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rlkl.errors import CheckpointError, RlklError, SaveError
from rlkl.learner.manifest import SavedFile, damaged, differences, list_files, missing, sync, write_manifest
from rlkl.recipe.run_dir import numbered

logger = logging.getLogger(__name__)

_STATE = "state.json"
_PREFIX = "step_"
_ASIDE = ".writing-"
_REMOVING = ".removing-"
_DAMAGED = "damaged_"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopState:
    """The loop's part of a checkpoint; the learner saves policy, heads, optimizer and schedule."""

    step: int
    """Steps finished."""
    position: int
    """Prompts drawn from the data source for these steps."""
    run_id: str
    """W&B run id."""
    reward_fingerprints: Mapping[str, str]
    data_fingerprint: str
    """Hash of all prompts: ``position`` means nothing in other data."""
    recipe: Mapping[str, Any]
    """The recipe by which these steps were made, every default included."""
    fingerprints: Mapping[str, str]
    """Hashes of what the recipe refers to: ``model``, ``reference``, ``rule``, ``column <name>``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The newest checkpoint that is whole."""

    checkpoint: Path
    state: LoopState
    damaged: Mapping[Path, str]
    """Newer checkpoints that are not whole, and what is wrong with each."""


@dataclass(slots=True, kw_only=True)
class Draft:
    """A checkpoint that is being written."""

    folder: Path
    written: dict[str, SavedFile] = field(default_factory=dict)
    """The files that another process wrote into ``folder``, as that process sees them."""

    def check(self) -> dict[str, SavedFile]:
        """Return all files of the folder; raises `SaveError` if what others wrote did not arrive here."""
        seen = list_files(self.folder)
        if problems := differences(self.written, seen):
            raise SaveError(
                f"the checkpoint in {self.folder} is not complete: {', '.join(problems[:5])} ({len(problems)} in all). "
                "The learner wrote these files; this process does not see them as they were written. If the learner "
                "runs on another machine, set run.dir to a folder that both share"
            )
        return seen


class Checkpoints:
    """The ``checkpoints`` folder of a run."""

    def __init__(self, run_dir: Path, *, keep: int) -> None:
        self._folder = run_dir / "checkpoints"
        self._keep = keep

    @contextmanager
    def writing(self, state: LoopState) -> Iterator[Draft]:
        """Make a folder to write a checkpoint into.

        If the block raises no error and every file arrived, the folder gets its name, and old checkpoints are removed.
        Otherwise the folder is removed.
        """
        final = self._folder / _name(state.step)
        aside = self._folder / f"{_ASIDE}{final.name}"
        for prefix in (_ASIDE, _REMOVING):
            for left_by_a_kill in self._folder.glob(f"{prefix}*"):
                shutil.rmtree(left_by_a_kill, ignore_errors=True)
        try:
            aside.mkdir(parents=True)
            draft = Draft(folder=aside)
            yield draft
            (aside / _STATE).write_text(json.dumps(asdict(state), indent=2) + "\n")
            write_manifest(aside, draft.check())
            for folder in (path for path in (aside, *aside.rglob("*")) if path.is_dir()):
                sync(folder)
            if final.exists():
                remove_folder(final)
            aside.rename(final)
        except BaseException as error:
            shutil.rmtree(aside, ignore_errors=True)
            if isinstance(error, OSError) and not isinstance(error, RlklError):
                raise SaveError(
                    f"the checkpoint {final} cannot be written ({error}). Free room on that disk, or see that you may "
                    "write there; earlier checkpoints stay"
                ) from error
            raise
        sync(self._folder)
        for old in self.complete()[: -self._keep]:
            remove_folder(old)

    def complete(self) -> list[Path]:
        """Return the complete checkpoints by the names and sizes of their files, oldest first."""
        return [path for path in self._all() if not missing(path)]

    def has(self, step: int) -> bool:
        """Return whether a complete checkpoint of this step is there."""
        return not missing(self._folder / _name(step))

    def latest(self) -> Path:
        """Return the newest checkpoint; raises `CheckpointError` if there is none, or if files of it are missing."""
        newest = self._any()[-1]
        _refuse(newest, missing(newest))
        return newest

    def newest_whole(self) -> Found:
        """Return the newest checkpoint whose files are all as they were written; reads every file.

        Raises `CheckpointError` if there is none, with what is wrong with each.
        """
        damaged: dict[Path, str] = {}
        for checkpoint in reversed(self._any()):
            try:
                return Found(checkpoint=checkpoint, state=read_state(checkpoint), damaged=damaged)
            except CheckpointError as error:
                damaged[checkpoint] = str(error)
        raise CheckpointError("\n".join(damaged.values()))

    def set_aside(self, damaged: Mapping[Path, str]) -> None:
        """Rename damaged checkpoints, so that nothing counts them and their steps are saved anew; log each."""
        for checkpoint, problem in damaged.items():
            kept = checkpoint.with_name(f"{_DAMAGED}{checkpoint.name}")
            shutil.rmtree(kept, ignore_errors=True)
            checkpoint.rename(kept)
            logger.warning("skipped and kept as %s: %s", kept.name, problem)

    def _any(self) -> list[Path]:
        """Return all checkpoints, whole or not, oldest first; raises `CheckpointError` if there is none."""
        found = self._all()
        if not found:
            raise CheckpointError(
                f"no complete checkpoint in {self._folder}; a run saves one after checkpoint.every steps, and "
                "when it is interrupted with Ctrl-C. Start anew with `rlkl train RECIPE`."
            )
        return found

    def _all(self) -> list[Path]:
        return [path for _, path in numbered(self._folder, f"{_PREFIX}*")]


def remove_folder(folder: Path) -> None:
    """Remove a folder. It loses its name first, so a kill leaves no half of it under that name."""
    doomed = folder.with_name(f"{_REMOVING}{folder.name}")
    shutil.rmtree(doomed, ignore_errors=True)
    folder.rename(doomed)
    shutil.rmtree(doomed)


def read_state(checkpoint: Path) -> LoopState:
    """Read the `LoopState` of a checkpoint; raises `CheckpointError` if any of its files is missing or has changed."""
    try:
        _refuse(checkpoint, damaged(checkpoint))
        return LoopState(**json.loads((checkpoint / _STATE).read_text()))
    except (OSError, ValueError, TypeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{checkpoint / _STATE} cannot be read ({error})") from error


def _refuse(checkpoint: Path, problems: list[str]) -> None:
    if problems:
        raise CheckpointError(
            f"the checkpoint {checkpoint} is not complete: {', '.join(problems[:5])} ({len(problems)} in all). "
            "If the run wrote it on several machines, was run.dir shared by them?"
        )


def _name(step: int) -> str:
    return f"{_PREFIX}{step:06d}"
