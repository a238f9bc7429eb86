"""Read the state of a run of a sweep from its folder. It is kept nowhere else."""

from __future__ import annotations

import json
import os
import re
from enum import Enum
from itertools import count
from pathlib import Path
from typing import Any

from rlkl.analysis.sweep_plan import EVALUATION_FILE, PlannedRun, read_json
from rlkl.recipe.run_dir import METRICS_FILE, is_taken


class RunState(Enum):
    """The state of one run."""

    MISSING = "missing"
    """Nothing is there that a new run would overwrite."""
    PARTIAL = "partial"
    """It holds files, such as steps, but no checkpoint: it starts again."""
    RESUMABLE = "resumable"
    """It has a checkpoint."""
    TRAINED = "trained"
    """It has its policy."""


ATTEMPTS = 2
"""Largest number of attempts at a run that fails."""
STARTS = 3
"""Largest number of starts of a run that ends before its first step, for example because Ray does not start."""
_ASIDE = ".partial-"
"""Stands in the name of a moved folder between the old name and a number."""


def state_of(folder: Path) -> RunState:
    """Return the state of the run in ``folder``, whether it failed or not."""
    if (folder / "policy").is_dir():
        return RunState.TRAINED
    if any(path.name.removeprefix("step_").isdecimal() for path in (folder / "checkpoints").glob("step_*")):
        return RunState.RESUMABLE
    return RunState.PARTIAL if is_taken(folder) else RunState.MISSING


def has_steps(folder: Path) -> bool:
    """Return whether the run has finished a step."""
    metrics = folder / METRICS_FILE
    return metrics.exists() and metrics.stat().st_size > 0


def is_evaluated(folder: Path) -> bool:
    """Return whether the folder of a run or of an untrained model has its evaluation."""
    return (folder / EVALUATION_FILE).is_file()


def move_aside(folder: Path) -> Path:
    """Rename the folder of a run that starts again, so that its records are kept; return the new path."""
    for number in count(1):
        target = folder.with_name(f"{folder.name}{_ASIDE}{number}")
        if not target.exists():
            folder.rename(target)
            return target
    raise AssertionError("numbers never end")


def is_moved_aside(folder: Path) -> bool:
    """Return whether a folder is one that `move_aside` renamed: its run was started again beside it."""
    return re.search(rf"{re.escape(_ASIDE)}\d+$", folder.name) is not None


def failure_of(run: PlannedRun, root: Path) -> dict[str, Any] | None:
    """Return the record of a failed run: ``stage``, ``attempts``, ``exit_code`` and ``message``; None if there is none.

    A run that was trained and could not be evaluated has one, too.
    """
    return read_json(run.failure(root))


def record_failure(run: PlannedRun, root: Path, *, stage: str, exit_code: int) -> dict[str, Any]:
    """Write down that a run failed; return the record."""
    before = failure_of(run, root)
    record = {
        "stage": stage,
        "attempts": 1 if before is None else before["attempts"] + 1,
        "exit_code": exit_code,
        "message": _last_message(run.log(root)),
        "log": run.log(root).name,
    }
    write_json(run.failure(root), record)
    return record


def write_json(path: Path, values: Any) -> None:
    """Write a JSON file. If the process is killed meanwhile, the file has its old content or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".writing-{path.name}")
    with aside.open("w", encoding="utf-8") as file:
        file.write(json.dumps(values, indent=2, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


def _last_message(log: Path) -> str:
    """Return the last line of a log that names an error, else its last line."""
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    named = [line for line in lines if line.startswith("error:")]
    return (named or lines or ["no output"])[-1][:500]
