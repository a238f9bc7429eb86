"""TensorBoard as a sink: event files in the run folder, written by tensorboardX."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path

from rlkl.recipe import Recipe
from rlkl.tracking.sinks.rows import as_markdown, sample_rows
from rlkl.tracking.sinks.sink import AlertLevel
from rlkl.types import step_number

FOLDER = "tensorboard"


class TensorBoardSink:
    """Writes metrics as scalars, and samples and alerts as text, to ``tensorboard/`` in the run folder.

    A resumed run adds an event file. It tells TensorBoard to hide what earlier files hold of the steps that are done
    again, so curves go on as one.
    """

    def __init__(self, run_dir: Path, recipe: Recipe, *, run_id: str, first_step: int) -> None:
        from tensorboardX import SummaryWriter

        self._run_dir = run_dir
        self._kept = recipe.tracking.samples_kept
        self._step = first_step
        self._writer = SummaryWriter(
            str(run_dir / FOLDER),
            purge_step=step_number(first_step) if first_step else None,
            filename_suffix=f".{first_step}",  # the name has seconds: a quick restart would write over the first file
        )

    def log(self, finished: int, metrics: Mapping[str, float]) -> None:
        """Write the metrics of a step as scalars."""
        self._step = finished
        for key, value in metrics.items():
            self._writer.add_scalar(key, value, finished)

    def log_evaluation(self, finished: int, metrics: Mapping[str, float]) -> None:
        """Write an evaluation as scalars."""
        self.log(finished, metrics)

    def log_samples(self, finished: int) -> None:
        """Write a table of samples as text."""
        rows = sample_rows(self._run_dir, finished, kept=self._kept)
        self._writer.add_text("samples", as_markdown(rows), finished)

    def alert(self, title: str, text: str, *, level: AlertLevel) -> None:
        """Write an alert as text, at the latest step."""
        self._writer.add_text(f"alerts/{title}", f"**{level}** {text}", self._step)

    def flush(self) -> None:
        """Write all events to the disk."""
        self._writer.flush()

    def finish(self, *, failed: bool) -> None:
        """Close the event file."""
        self._writer.close()

    def places(self) -> Mapping[str, Path | str]:
        """Return the command that shows the events."""
        return {"TensorBoard": f"tensorboard --logdir {shlex.quote(str(self._run_dir / FOLDER))}"}
