"""A thread that writes records beside the training loop."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait

from rlkl.errors import DeadlineError

FLUSH_TIMEOUT_S = 120.0
"""How long everything handed over may take to be written."""


class BackgroundWriter:
    """Runs jobs one after the other on a thread of its own. An error of a job is raised at the next call."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="tracking")
        self._jobs: deque[Future[None]] = deque()

    def submit(self, job: Callable[[], None]) -> None:
        while self._jobs and self._jobs[0].done():
            self._jobs.popleft().result()
        self._jobs.append(self._executor.submit(job))

    def flush(self) -> None:
        """Returns once all jobs are done; raises the first error among them, or DeadlineError."""
        errors = self.drain()
        if errors:
            raise errors[0]

    def drain(self) -> list[BaseException]:
        """Waits for all jobs, and returns their errors instead of raising."""
        done, late = wait(self._jobs, timeout=FLUSH_TIMEOUT_S)
        errors = [error for job in self._jobs if job in done and (error := job.exception()) is not None]
        self._jobs.clear()
        if late:
            left = f"the tracking thread left {len(late)} records unwritten after {FLUSH_TIMEOUT_S} s"
            errors.append(DeadlineError(f"{left}; is the disk or the network of the run folder stuck?"))
        return errors

    def close(self) -> None:
        """Takes no more jobs."""
        self._executor.shutdown(wait=False)
