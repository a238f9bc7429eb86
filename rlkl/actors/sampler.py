"""Sampling on rollout workers, each a Ray actor with an engine of its own."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

import ray

from rlkl.actors.calls import late, wait
from rlkl.actors.shells import HandOver, RolloutWorker
from rlkl.errors import ActorDiedError
from rlkl.rollout.collect import share_out
from rlkl.rollout.engine import Request
from rlkl.types import Completion

_POLL_S = 5.0
"""A worker reports after this time at the latest."""
_LOOK_S = 0.1
"""`RaySampler.finished` yields after this time at the latest."""
_REPORTS = "reports"
"""Reports have a thread of their own in the worker. Its other calls run one after the other, in order."""


def start_worker(options: Mapping[str, Any]) -> Any:
    """Start the actor of a rollout worker with Ray's options."""
    actor: Any = ray.remote(concurrency_groups={_REPORTS: 1})  # pyright: ignore[reportCallIssue]
    return actor(RolloutWorker).options(**options).remote()


class RaySampler:
    """Shares requests out over all workers and merges what they finish. Use it on one thread at a time."""

    def __init__(self, workers: Sequence[Any], names: Sequence[str], *, timeout_s: float) -> None:
        self._workers, self._names, self._timeout_s = workers, names, timeout_s
        self._unfinished: list[set[int]] = [set() for _ in workers]
        """Numbers of the requests of each worker."""
        self._ends = [0.0 for _ in workers]
        """The times by which each worker must finish a further request."""
        self._sent: dict[Any, int] = {}
        """Requests on their way, with their workers' numbers."""
        self._reports: dict[Any, int] = {}
        """Reports that are awaited, with their workers' numbers."""
        self._idle_s = [0.0 for _ in workers]

    def submit(self, requests: Sequence[Request]) -> None:
        """Start sampling one completion a request, in nearly equal parts on all workers.

        Requests are numbered from 0; `finished` must have returned all those before.
        """
        assert not any(self._unfinished), "earlier requests have not been collected"
        first = 0
        for worker, part in enumerate(share_out(requests, len(self._workers))):
            self._send(worker, part, first)
            first += len(part)

    def submit_together(self, requests: Sequence[Request], *, first: int) -> None:
        """Start sampling on the worker with the fewest requests, beside those that run; number them from ``first``."""
        worker = min(range(len(self._workers)), key=lambda number: len(self._unfinished[number]))
        self._send(worker, requests, first)

    def finished(self) -> Iterator[list[tuple[int, Completion]]]:
        """Yield completions as they finish, with their requests' numbers, until none is left; often without any.

        Raises `DeadlineError` if a worker finishes none of its requests for ``timeout_s``, and `ActorDiedError`.
        """
        while any(self._unfinished):
            yield self._look()

    @property
    def idle_s(self) -> float:
        """Seconds in which an engine had no request, since the start, as of the last reports: the workers' mean."""
        return fmean(self._idle_s) if self._idle_s else 0.0

    def _check_ray(self) -> None:
        """Raise `ActorDiedError` if the run has ended; Ray would start anew for a thread that asks it then."""
        if not ray.is_initialized():
            raise ActorDiedError("the rollout workers have ended with the run")

    def _send(self, worker: int, requests: Sequence[Request], first: int) -> None:
        self._check_ray()
        if requests:
            numbered = list(enumerate(requests, start=first))
            self._sent[self._workers[worker].submit.remote(numbered)] = worker
            if not self._unfinished[worker]:
                self._ends[worker] = time.monotonic() + self._timeout_s
            self._unfinished[worker] |= {number for number, _ in numbered}

    def _look(self) -> list[tuple[int, Completion]]:
        self._check_ray()
        for worker, unfinished in enumerate(self._unfinished):
            if unfinished and worker not in self._reports.values():
                report = self._workers[worker].finished.options(concurrency_group=_REPORTS).remote(_POLL_S)
                self._reports[report] = worker
        ready, _ = ray.wait([*self._reports, *self._sent], num_returns=1, timeout=_LOOK_S)
        finished: list[tuple[int, Completion]] = []
        for ref in ready:
            if (sent := self._sent.pop(ref, None)) is not None:
                wait(ref, who=self._names[sent], what="take in requests", timeout_s=self._timeout_s)
                continue
            worker = self._reports.pop(ref)
            report: HandOver = wait(ref, who=self._names[worker], what="generate", timeout_s=self._timeout_s)
            self._idle_s[worker] = report.idle_s
            if report.finished:
                self._ends[worker] = time.monotonic() + self._timeout_s
            self._unfinished[worker] -= {number for number, _ in report.finished}
            finished += report.finished
        for name, unfinished, end in zip(self._names, self._unfinished, self._ends, strict=True):
            if unfinished and end < time.monotonic():
                raise late(name, "generate", self._timeout_s)
        return finished
