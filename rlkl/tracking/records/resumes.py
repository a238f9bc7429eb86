"""The resumes of a run: ``resumed.jsonl``, one JSON object a resume with the number of steps finished before it."""

from __future__ import annotations

import json
from pathlib import Path

from rlkl.tracking.records.reading import read_metrics

RESUMES = "resumed.jsonl"


def note_resume(run_dir: Path, first_step: int) -> None:
    """Note that a run goes on at step index ``first_step``; forget resumes at later steps, which it will do again."""
    path = run_dir / RESUMES
    kept = [record for record in read_metrics(path) if record["step"] <= first_step]
    text = "".join(json.dumps(record) + "\n" for record in [*kept, {"step": first_step}])
    path.write_text(text, encoding="utf-8")


def read_resumes(run_dir: Path) -> list[int]:
    """Return the numbers of steps that were finished when the run was resumed, oldest first."""
    return [int(record["step"]) for record in read_metrics(run_dir / RESUMES)]
