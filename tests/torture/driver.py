"""Run `rlkl`, and keep in a file in which phase the run is, for the process that kills it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

PHASE_FILE = "RLKL_TORTURE_PHASE"
"""Environment variable with the path of the file."""
SET_UP, BETWEEN = "set-up", "between steps"
PUBLISH, CHECKPOINT = "publish", "checkpoint"


def phase_in(file: Path) -> str:
    """Return the phase that the file shows."""
    return (file.read_text() if file.exists() else "") or SET_UP


def mark(owner: type, method: str, phase: str, *, outside: str, file: Path) -> None:
    """Let a method write its phase to the file while it runs."""
    inner: Callable[..., Any] = getattr(owner, method)

    @wraps(inner)
    def outer(*arguments: Any, **settings: Any) -> Any:
        file.write_text(phase)
        try:
            return inner(*arguments, **settings)
        finally:
            file.write_text(outside)

    setattr(owner, method, outer)


def mark_all(file: Path) -> None:
    """Mark the phases of a run."""
    from rlkl.training.faults import Faults
    from rlkl.training.loop import Trainer
    from rlkl.training.publish import Publisher
    from rlkl.training.saving import Saver

    mark(Trainer, "_train_step", "step", outside=BETWEEN, file=file)
    mark(Faults, "learn", "learner", outside="step", file=file)
    mark(Publisher, "publish", PUBLISH, outside="step", file=file)
    mark(Publisher, "publish_first", PUBLISH, outside=BETWEEN, file=file)
    mark(Saver, "save_once", CHECKPOINT, outside=BETWEEN, file=file)
    mark(Saver, "export", "export", outside=BETWEEN, file=file)


if __name__ == "__main__":
    from rlkl.cli import main

    mark_all(Path(os.environ[PHASE_FILE]))
    sys.exit(main())
