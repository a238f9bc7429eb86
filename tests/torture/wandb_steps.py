"""Read which steps the W&B folders of a run hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rlkl.tracking.metrics.registry import without_timings
from rlkl.tracking.wandb.parts import read_rows


def recorded_steps(run_dir: Path) -> list[int]:
    """Return the steps of a run that W&B has, as an upload of all its parts shows them.

    Each start of a run writes a part. A step whose checkpoint was lost is done again, so two parts may hold it. Its
    number is returned once if both have the same metrics, else twice. A step that one part holds twice is returned
    twice.
    """
    steps: list[int] = []
    known: dict[int, Mapping[str, Any]] = {}
    for part in sorted((run_dir / "wandb").glob("offline-run-*")):
        in_part: list[int] = []
        for step, metrics in _rows(part):
            if step in in_part or known.get(step, metrics) != metrics:
                steps.append(step)
            in_part.append(step)
            known[step] = metrics
    return sorted([*steps, *known])


def _rows(part: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yield the steps and their metrics, without times and without tables."""
    for row in read_rows(part):
        metrics = {key: value for key, value in row.items() if isinstance(value, (int, float)) and "/" in key}
        yield int(row["step"]), without_timings(metrics)
