"""A thread that writes records beside the training loop."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from multiprocessing.pool import AsyncResult, ThreadPool

from rlkl.errors import DeadlineError

FLUSH_TIMEOUT_S = 120.0
"""How long everything handed over may take to be written."""


class BackgroundWriter:
    """Runs jobs one after the other on a thread of its own. An error of a job is raised at the next call.

    The thread is a daemon: a job that never ends cannot keep the process alive, as one of an executor would.
    """

    def __init__(self) -> None:
        self._pool = ThreadPool(1)
        self._jobs: deque[AsyncResult[None]] = deque()
        self._errors: deque[BaseException] = deque()

    def submit(self, job: Callable[[], None]) -> None:
        if self._errors:
            raise self._errors.popleft()
        while self._jobs and self._jobs[0].ready():
            self._jobs.popleft()
        self._jobs.append(self._pool.apply_async(job, error_callback=self._errors.append))

    def flush(self) -> None:
        """Returns once all jobs are done; raises the first error among them, or DeadlineError."""
        errors = self.drain()
        if errors:
            raise errors[0]

    def drain(self) -> list[BaseException]:
        """Waits for all jobs, and returns their errors instead of raising."""
        end = time.monotonic() + FLUSH_TIMEOUT_S
        for job in self._jobs:
            job.wait(max(end - time.monotonic(), 0.0))
        late = sum(not job.ready() for job in self._jobs)
        errors = [*self._errors]
        self._jobs.clear()
        self._errors.clear()
        if late:
            left = f"the tracking thread left {late} records unwritten after {FLUSH_TIMEOUT_S} s"
            errors.append(DeadlineError(f"{left}; is the disk or the network of the run folder stuck?"))
        return errors

    def close(self) -> None:
        """Takes no more jobs."""
        self._pool.close()
