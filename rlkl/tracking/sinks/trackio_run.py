"""trackio as a sink: a local database of runs with a dashboard of its own, `trackio show`."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlkl.recipe import Recipe
from rlkl.recipe.arm import arm_of
from rlkl.tracking.records.reading import read_metrics, sample_files
from rlkl.tracking.sinks.rows import COLUMNS, sample_rows
from rlkl.tracking.sinks.sink import AlertLevel


class TrackioSink:
    """Writes metrics, tables of samples and alerts to the trackio project ``tracking.project``.

    trackio keeps its database in TRACKIO_DIR. A run is called by the recipe's name and the run's id. trackio cannot
    take back steps that a resumed run does again, so a resume replaces the run in the local database: the records so
    far are read from the run folder and logged again.
    """

    def __init__(self, run_dir: Path, recipe: Recipe, *, run_id: str, first_step: int) -> None:
        import trackio

        self._run_dir = run_dir
        self._kept = recipe.tracking.samples_kept
        self._project = recipe.tracking.project
        name = f"{recipe.run.name}-{run_id}"
        for run in trackio.Api().runs(self._project) if first_step else ():
            if run.name == name:
                run.delete()
        self._run: Any = trackio.init(
            project=self._project,
            name=name,
            group=recipe.tracking.group or arm_of(recipe),
            config=recipe.model_dump(mode="json"),
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
        if first_step:
            self._repeat(first_step)

    def _repeat(self, first_step: int) -> None:
        """Log the records of the first steps again."""
        for name in ("metrics.jsonl", "eval.jsonl"):
            for record in read_metrics(self._run_dir / name):
                if record["step"] <= first_step:
                    self.log(int(record["step"]), {key: value for key, value in record.items() if key != "step"})
        for finished, _ in sample_files(self._run_dir):
            if finished <= first_step:
                self.log_samples(finished)

    def log(self, finished: int, metrics: Mapping[str, float]) -> None:
        """Log the metrics of a step."""
        self._run.log(dict(metrics), step=finished)

    def log_evaluation(self, finished: int, metrics: Mapping[str, float]) -> None:
        """Log an evaluation."""
        self.log(finished, metrics)

    def log_samples(self, finished: int) -> None:
        """Log a table of samples."""
        import trackio

        rows = [list(row.values()) for row in sample_rows(self._run_dir, finished, kept=self._kept)]
        self._run.log({"samples": trackio.Table(columns=list(COLUMNS), data=rows)}, step=finished)

    def alert(self, title: str, text: str, *, level: AlertLevel) -> None:
        """Raise an alert, which trackio also prints, and sends to TRACKIO_WEBHOOK_URL if that is set."""
        import trackio

        self._run.alert(title=title, text=text, level=trackio.AlertLevel[level])

    def flush(self) -> None:
        """Do nothing: trackio writes twice a second on its own."""

    def finish(self, *, failed: bool) -> None:
        """Close the run; waits at most 30 seconds for its last records."""
        self._run.finish()

    def places(self) -> Mapping[str, Path | str]:
        """Return the command that shows the project."""
        return {"trackio": f"trackio show --project {shlex.quote(self._project)}"}
