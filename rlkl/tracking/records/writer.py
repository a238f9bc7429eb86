"""A thread that writes records beside the training loop."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from multiprocessing.pool import AsyncResult, ThreadPool

from rlkl.errors import DeadlineError

FLUSH_TIMEOUT_S = 120.0
"""Seconds that everything handed over may take to be written."""


class BackgroundWriter:
    """Runs jobs one after the other on a thread of its own. An error of a job is raised at the next call.

    The thread is a daemon: a job that never ends cannot keep the process alive, as one of an executor would.
    """

    def __init__(self) -> None:
        self._pool = ThreadPool(1)
        self._jobs: deque[AsyncResult[None]] = deque()
        self._errors: deque[BaseException] = deque()

    def submit(self, job: Callable[[], None]) -> AsyncResult[None]:
        """Run ``job`` after those before it; returns a handle to wait for it. Raises the error of an earlier job."""
        if self._errors:
            raise self._errors.popleft()
        return self.put(job)

    def put(self, job: Callable[[], None]) -> AsyncResult[None]:
        """Run ``job`` like `submit`, and leave errors of earlier jobs to `drain` and `take_errors`."""
        while self._jobs and self._jobs[0].ready():
            self._jobs.popleft()
        handle = self._pool.apply_async(job, error_callback=self._errors.append)
        self._jobs.append(handle)
        return handle

    def flush(self) -> None:
        """Return once all jobs are done; raises the first error among them, or DeadlineError."""
        errors = self.drain()
        if errors:
            raise errors[0]

    def drain(self, timeout_s: float | None = None) -> list[BaseException]:
        """Wait for all jobs, by default `FLUSH_TIMEOUT_S`, and return their errors instead of raising."""
        timeout_s = FLUSH_TIMEOUT_S if timeout_s is None else timeout_s
        end = time.monotonic() + timeout_s
        for job in self._jobs:
            job.wait(max(end - time.monotonic(), 0.0))
        late = sum(not job.ready() for job in self._jobs)
        self._jobs.clear()
        errors = self.take_errors()
        if late:
            left = f"the tracking thread left {late} records unwritten after {timeout_s} s"
            errors.append(DeadlineError(f"{left}; is the disk or the network of the run folder stuck?"))
        return errors

    def take_errors(self) -> list[BaseException]:
        """Return the errors of jobs so far, without waiting; each is returned or raised once."""
        errors = [*self._errors]
        self._errors.clear()
        return errors

    def close(self) -> None:
        """Take no more jobs."""
        self._pool.close()
