"""Checkpoints on disk: written aside, synced, renamed; complete or absent, never half."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rlkl.errors import CheckpointError

_STATE = "state.json"
_PREFIX = "step_"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopState:
    """What the loop must know to go on; policy, heads, optimizer and schedule are saved by the learner."""

    step: int
    """Steps finished."""
    position: int
    """Prompts drawn from the data source so far."""
    run_id: str
    """W&B run id."""
    reward_fingerprints: Mapping[str, str]
    data_fingerprint: str
    """Hash of all prompts: ``position`` means nothing in other data."""
    recipe: Mapping[str, Any] | None = None
    """The recipe by which these steps were made, every default included; None in checkpoints of earlier versions."""
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    """Hashes of what the recipe refers to: ``model``, ``reference``, ``rule``, ``column <name>``."""


class Checkpoints:
    """The ``checkpoints`` folder of a run."""

    def __init__(self, run_dir: Path, *, keep: int) -> None:
        self._folder = run_dir / "checkpoints"
        self._keep = keep

    @contextmanager
    def writing(self, state: LoopState) -> Iterator[Path]:
        """A folder to write a checkpoint into. It gets its name, and old ones go, only when the block ends well."""
        final = self._folder / f"{_PREFIX}{state.step:06d}"
        aside = self._folder / f".writing-{final.name}"
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        yield aside
        (aside / _STATE).write_text(json.dumps(asdict(state), indent=2) + "\n")
        _sync_tree(aside)
        if final.exists():
            shutil.rmtree(final)
        aside.rename(final)
        _sync(self._folder)
        for old in self.complete()[: -self._keep]:
            shutil.rmtree(old)

    def complete(self) -> list[Path]:
        """Finished checkpoints, oldest first."""
        found = self._folder.glob(f"{_PREFIX}*")
        return sorted(path for path in found if path.name.removeprefix(_PREFIX).isdecimal())

    def has(self, step: int) -> bool:
        """Whether a finished checkpoint of this step is there."""
        return (self._folder / f"{_PREFIX}{step:06d}").is_dir()

    def latest(self) -> Path:
        """The newest checkpoint; raises `CheckpointError` when there is none."""
        found = self.complete()
        if not found:
            raise CheckpointError(
                f"no complete checkpoint in {self._folder}; a run saves one after checkpoint.every steps, and "
                "when it is interrupted with Ctrl-C. Start anew with `rlkl train RECIPE`."
            )
        return found[-1]


def read_state(checkpoint: Path) -> LoopState:
    """The `LoopState` of a checkpoint; raises `CheckpointError` when it cannot be read."""
    try:
        return LoopState(**json.loads((checkpoint / _STATE).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"{checkpoint / _STATE} cannot be read ({error}); remove {checkpoint} to use an older one"
        ) from error


def _sync_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        _sync(path)
    _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
