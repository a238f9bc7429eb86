"""Keeps a sink beside the run: on a thread of its own, and without power to end the run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from multiprocessing.pool import AsyncResult
from pathlib import Path

from rlkl.tracking.records.writer import FLUSH_TIMEOUT_S, BackgroundWriter
from rlkl.tracking.sinks.sink import AlertLevel, Sink

_log = logging.getLogger(__name__)

PATIENCE_S = 120.0
"""Seconds that a checkpoint, or the end of the run, waits for a sink to take in what it was given."""


class SinkRecorder:
    """Hands records to a `Sink` in order. At its first failure it warns, and records no more.

    ``metrics.jsonl``, ``eval.jsonl`` and the sample files hold everything that the sink would have been given.
    """

    def __init__(self, title: str, open_sink: Callable[[], Sink]) -> None:
        """Open the sink on its thread; ``title`` names it in the warning."""
        self._title = title
        self._writer = BackgroundWriter()
        self._failed = False
        self._sink: Sink | None = None

        def job() -> None:
            self._sink = open_sink()

        self._put(job)

    def log(self, finished: int, metrics: Mapping[str, float]) -> None:
        """Record the metrics of a step."""
        self._submit(lambda sink: sink.log(finished, metrics))

    def log_evaluation(self, finished: int, metrics: Mapping[str, float]) -> None:
        """Record an evaluation."""
        self._submit(lambda sink: sink.log_evaluation(finished, metrics))

    def log_samples(self, finished: int, written: AsyncResult[None]) -> None:
        """Record a step's samples once ``written``, the job that writes their file, is done."""

        def record(sink: Sink) -> None:
            written.get(FLUSH_TIMEOUT_S)
            sink.log_samples(finished)

        self._submit(record)

    def alert(self, title: str, text: str, *, level: AlertLevel) -> None:
        """Show a message that somebody should read soon."""
        self._submit(lambda sink: sink.alert(title, text, level=level))

    def settle(self) -> None:
        """Wait until the sink has taken in all records so far, at most `PATIENCE_S`."""
        self._submit(lambda sink: sink.flush())
        self._look_at(self._writer.drain(PATIENCE_S))

    def finish(self, *, failed: bool) -> None:
        """Close the sink, even after a failure; waits at most `PATIENCE_S` for it."""
        self._look_at(self._writer.drain(PATIENCE_S))
        self._put(partial(self._with_sink, lambda sink: sink.finish(failed=failed)))
        self._look_at(self._writer.drain(PATIENCE_S))
        self._writer.close()

    def places(self) -> Mapping[str, Path | str]:
        """Return where the records are; nothing if the sink never opened."""
        return {} if self._sink is None else self._sink.places()

    def _submit(self, record: Callable[[Sink], None]) -> None:
        self._look_at(self._writer.take_errors())
        if not self._failed:
            self._put(partial(self._with_sink, record))

    def _put(self, job: Callable[[], None]) -> None:
        self._writer.put(job)

    def _with_sink(self, record: Callable[[Sink], None]) -> None:
        if self._sink is not None:
            record(self._sink)

    def _look_at(self, errors: list[BaseException]) -> None:
        if not errors or self._failed:
            return
        self._failed = True
        _log.warning(
            "%s failed (%s: %s) and records no more of this run. The run goes on: metrics.jsonl and the sample files "
            "hold everything, and a resume of the run starts %s again",
            self._title,
            type(errors[0]).__name__,
            errors[0],
            self._title,
        )
