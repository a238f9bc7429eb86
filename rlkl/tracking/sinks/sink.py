"""The interface of a sink: a place beside the run's own files that shows its records."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Protocol

AlertLevel = Literal["WARN", "ERROR"]


class Sink(Protocol):
    """Shows the records of one run.

    The files in the run folder are the truth. A sink may fail at any call: `SinkRecorder` then warns once, and the run
    goes on without it. ``finished`` is the number of finished steps.
    """

    def log(self, finished: int, metrics: Mapping[str, float]) -> None:
        """Show the metrics of a step."""
        ...

    def log_evaluation(self, finished: int, metrics: Mapping[str, float]) -> None:
        """Show an evaluation on held-out data after ``finished`` steps; 0 is before training."""
        ...

    def log_samples(self, finished: int) -> None:
        """Show the first ``tracking.samples_kept`` rollouts of a step's sample file, which is complete."""
        ...

    def alert(self, title: str, text: str, *, level: AlertLevel) -> None:
        """Show a message that somebody should read soon."""
        ...

    def flush(self) -> None:
        """Make sure that a kill of the process loses nothing of the records so far."""
        ...

    def finish(self, *, failed: bool) -> None:
        """Close the sink."""
        ...

    def places(self) -> Mapping[str, Path | str]:
        """Return where the records are, for the summary of the run: name, and folder, address or command."""
        ...
