"""The result of a run, for callers of `rlkl.train`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """The end of a run. ``exit_code``: 0 done, 128 + signal number if it was interrupted and saved."""

    run_dir: Path
    status: Literal["done", "interrupted"]
    exit_code: int
    metrics: dict[str, float]
    """The metrics of the last step."""
