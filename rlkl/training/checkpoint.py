"""Checkpoints on disk: written aside, synced, checked, renamed; complete or absent, never half.

A checkpoint is complete if every file of its manifest is there, as this process sees the disk.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rlkl.errors import CheckpointError, SaveError
from rlkl.learner.manifest import SavedFile, damaged, differences, list_files, missing, sync, write_manifest

_STATE = "state.json"
_PREFIX = "step_"
_ASIDE = ".writing-"


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

        It gets its name, and old ones go, only if the block ends well and every file arrived; otherwise it is removed.
        """
        final = self._folder / _name(state.step)
        aside = self._folder / f"{_ASIDE}{final.name}"
        for left_by_a_kill in self._folder.glob(f"{_ASIDE}*"):
            shutil.rmtree(left_by_a_kill, ignore_errors=True)
        aside.mkdir(parents=True)
        try:
            draft = Draft(folder=aside)
            yield draft
            (aside / _STATE).write_text(json.dumps(asdict(state), indent=2) + "\n")
            write_manifest(aside, draft.check())
            for folder in (path for path in (aside, *aside.rglob("*")) if path.is_dir()):
                sync(folder)
            if final.exists():
                shutil.rmtree(final)
            aside.rename(final)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
        sync(self._folder)
        for old in self.complete()[: -self._keep]:
            shutil.rmtree(old)

    def complete(self) -> list[Path]:
        """Return the complete checkpoints by the names and sizes of their files, oldest first."""
        return [path for path in self._all() if not missing(path)]

    def has(self, step: int) -> bool:
        """Return whether a complete checkpoint of this step is there."""
        return not missing(self._folder / _name(step))

    def latest(self) -> Path:
        """Return the newest checkpoint; raises `CheckpointError` if there is none, or if files of it are missing."""
        found = self._all()
        if not found:
            raise CheckpointError(
                f"no complete checkpoint in {self._folder}; a run saves one after checkpoint.every steps, and "
                "when it is interrupted with Ctrl-C. Start anew with `rlkl train RECIPE`."
            )
        _refuse(found[-1], missing(found[-1]))
        return found[-1]

    def _all(self) -> list[Path]:
        found = self._folder.glob(f"{_PREFIX}*")
        return sorted(path for path in found if path.name.removeprefix(_PREFIX).isdecimal())


def read_state(checkpoint: Path) -> LoopState:
    """Read the `LoopState` of a checkpoint; raises `CheckpointError` if any of its files is missing or has changed."""
    try:
        _refuse(checkpoint, damaged(checkpoint))
        return LoopState(**json.loads((checkpoint / _STATE).read_text()))
    except (OSError, ValueError, TypeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"{checkpoint / _STATE} cannot be read ({error}); remove {checkpoint} to use an older one"
        ) from error


def _refuse(checkpoint: Path, problems: list[str]) -> None:
    if problems:
        raise CheckpointError(
            f"the checkpoint {checkpoint} is not complete: {', '.join(problems[:5])} ({len(problems)} in all). Remove "
            "it to go on from an older one; if the run wrote it on several machines, was run.dir shared by them?"
        )


def _name(step: int) -> str:
    return f"{_PREFIX}{step:06d}"
