"""The failures of a run, kept with text and traceback: ``failures/step_000010.jsonl``, one JSON object a failed score.

The file has the number of its step (`rlkl.types.step_number`): that of step index 9 is ``step_000010.jsonl``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rlkl.types import step_index, step_number


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedScore:
    """One sample on which one reward failed."""

    reward: str
    kind: str
    error: str
    on_error: str
    """The consequence for the sample."""
    prompt_id: str
    draw: int
    sample_index: int
    prompt: str
    completion: str
    traceback: str


class FailureLog:
    """The folder ``failures`` of a run."""

    def __init__(self, run_dir: Path, *, first_step: int) -> None:
        """Remove the files of steps that a run will do again if it continues at step index ``first_step``."""
        self._folder = run_dir / "failures"
        for path in sorted(self._folder.glob("step_*.jsonl")):
            number = path.stem.removeprefix("step_")
            if number.isdecimal() and step_index(int(number)) >= first_step:
                path.unlink()

    def path(self, step: int) -> Path:
        """Return the file with the failures of the step with this index."""
        return self._folder / f"step_{step_number(step):06d}.jsonl"

    def write(self, step: int, failures: Sequence[FailedScore]) -> None:
        """Add to the step's file; a step without failures has none."""
        if not failures:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        with self.path(step).open("a", encoding="utf-8") as file:
            for failure in failures:
                file.write(json.dumps({"step": step_number(step), **asdict(failure)}) + "\n")
