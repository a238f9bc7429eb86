"""Keeps W&B beside the run: on a thread of its own, and without power to end the run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from multiprocessing.pool import AsyncResult
from pathlib import Path

from rlkl.tracking.records.writer import FLUSH_TIMEOUT_S, BackgroundWriter
from rlkl.tracking.wandb.run import WandbRun

_log = logging.getLogger(__name__)

PATIENCE_S = 120.0
"""Seconds that a checkpoint, or the end of the run, waits for W&B to take in what it was given."""


class WandbRecorder:
    """Hands records to a `WandbRun` in order. At W&B's first failure it warns, and records no more.

    ``metrics.jsonl`` and the sample files hold everything that W&B would have been given.
    """

    def __init__(self, run: WandbRun) -> None:
        self._run = run
        self._writer = BackgroundWriter()
        self._failed = False

    @property
    def folder(self) -> Path:
        """See `WandbRun.folder`."""
        return self._run.folder

    def sync_hint(self) -> str:
        """See `WandbRun.sync_hint`."""
        return self._run.sync_hint()

    def log(self, finished: int, metrics: Mapping[str, float]) -> None:
        """Record the metrics of a step."""
        self._submit(partial(self._run.log, finished, metrics))

    def log_samples(self, finished: int, written: AsyncResult[None]) -> None:
        """Record a step's samples once ``written``, the job that writes their file, is done."""

        def job() -> None:
            written.get(FLUSH_TIMEOUT_S)
            self._run.log_samples(finished)

        self._submit(job)

    def settle(self) -> None:
        """Wait until W&B has taken in all records so far, at most `PATIENCE_S`."""
        self._look_at(self._writer.drain(PATIENCE_S))

    def finish(self, *, failed: bool) -> None:
        """Close the W&B run, even after a failure; waits at most `PATIENCE_S` for it."""
        self.settle()
        self._writer.submit(partial(self._run.finish, failed=failed))
        self._look_at(self._writer.drain(PATIENCE_S))
        self._writer.close()

    def _submit(self, job: Callable[[], None]) -> None:
        self._look_at(self._writer.take_errors())
        if not self._failed:
            self._writer.submit(job)

    def _look_at(self, errors: list[BaseException]) -> None:
        if not errors or self._failed:
            return
        self._failed = True
        _log.warning(
            "W&B failed (%s: %s) and records no more of this run. The run goes on: metrics.jsonl and the sample files "
            "hold everything, and a resume of the run starts W&B again",
            type(errors[0]).__name__,
            errors[0],
        )
