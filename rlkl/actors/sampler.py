"""Sampling on rollout workers, each a Ray actor with an engine of its own."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import ray

from rlkl.actors.calls import deadline_error, wait
from rlkl.actors.shells import RolloutWorker
from rlkl.actors.workers import FAILURES, Failure, Worker, Workers
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


@dataclass(slots=True, kw_only=True, eq=False)
class _Share:
    """The requests that the worker with one number has to finish."""

    number: int
    worker: Worker | None = None
    """The worker that has them. If another one serves in its place, that one gets all of them."""
    unfinished: dict[int, Request] = field(default_factory=dict)
    """By their numbers."""
    unsent: dict[int, Request] = field(default_factory=dict)
    """The unfinished requests that the worker does not have yet."""
    submits: list[Any] = field(default_factory=list)
    """Calls that send requests, not yet known to have arrived."""
    report: Any = None
    """The report that is awaited, or None."""
    silent_s: float = 0.0
    """Seconds since the worker has finished a request, or got its first one."""
    idle_s: float = 0.0


class RaySampler:
    """Shares requests out over all workers and merges what they finish. Use it on one thread at a time.

    A worker that ends or hangs is replaced, here or by another thread. What it had not finished is sampled again, with
    the same seeds.
    """

    def __init__(self, workers: Workers) -> None:
        self._workers, self._timeout_s = workers, workers.timeout_s
        self._shares = [_Share(number=number) for number in range(len(workers))]
        self._looked = 0.0
        """Time up to which the workers' silence is counted."""

    def submit(self, requests: Sequence[Request]) -> None:
        """Start sampling one completion a request, in nearly equal parts on all workers.

        Number the requests from 0. `finished` must have returned all earlier ones.
        """
        assert not self._are_unfinished, "earlier requests have not been collected"
        first = 0
        for share, part in zip(self._shares, share_out(requests, len(self._shares)), strict=True):
            self._add(share, dict(enumerate(part, start=first)))
            first += len(part)

    def submit_together(self, requests: Sequence[Request], *, first: int) -> None:
        """Start sampling on the worker with the fewest requests, beside those that run; number them from ``first``.

        Pass over workers that are being replaced. If all are, the requests wait for one of them.
        """
        serving = [share for share in self._shares if self._workers.serving(share.number) is not None]
        share = min(serving or self._shares, key=lambda share: len(share.unfinished))
        self._add(share, dict(enumerate(requests, start=first)))

    def finished(self) -> Iterator[list[tuple[int, Completion]]]:
        """Yield completions as they finish, with their requests' numbers, until none is left; often without any.

        Raises `DeadlineError` if a worker finishes none of its requests for ``timeout_s``, and `ActorDiedError` if it
        ends; both only if the worker cannot be replaced.
        """
        self._looked = time.monotonic()
        while self._are_unfinished:
            yield self._read_reports()

    def forget(self) -> None:
        """See `rlkl.training.hands.Sampler.forget`."""
        workers = self._workers
        workers.collect(workers.call(lambda actor: actor.forget.remote()), what="drop its caches")

    @property
    def idle_s(self) -> float:
        """Seconds in which an engine had no request, since the start, as of the last reports: the workers' mean."""
        return fmean(share.idle_s for share in self._shares) if self._shares else 0.0

    @property
    def _are_unfinished(self) -> bool:
        return any(share.unfinished for share in self._shares)

    def _add(self, share: _Share, requests: Mapping[int, Request]) -> None:
        if not share.unfinished:
            share.silent_s = 0.0
        share.unfinished |= requests
        share.unsent |= requests
        self._send(share)

    def _send(self, share: _Share) -> bool:
        """Send a worker the requests that it does not have; return False if it is being replaced."""
        worker = self._workers.serving(share.number)
        if worker is None:
            return False
        if worker is not share.worker:
            share.worker, share.submits, share.report, share.silent_s = worker, [], None, 0.0
            share.unsent = dict(share.unfinished)
        if share.unsent:
            share.submits.append(worker.actor.submit.remote(list(share.unsent.items())))
            share.unsent = {}
        return True

    def _read_reports(self) -> list[tuple[int, Completion]]:
        """Wait a moment for reports; return the completions in all that are there. Replace workers that failed."""
        shares = [share for share in self._shares if self._send(share)]
        awaited: dict[Any, _Share] = {}
        for share in shares:
            if share.unfinished and share.report is None and share.worker is not None:
                reports = share.worker.actor.finished.options(concurrency_group=_REPORTS)
                share.report = reports.remote(_POLL_S)
            awaited |= dict.fromkeys([*share.submits, *([] if share.report is None else [share.report])], share)
        ready = _ready(list(awaited))
        self._count_silence(shares)
        finished = [one for ref in ready for one in self._read(awaited[ref], ref)]
        for share in shares:
            if share.unfinished and share.silent_s > self._timeout_s:
                self._replace_silent(share)
        return finished

    def _count_silence(self, shares: Sequence[_Share]) -> None:
        """Count the time since the last look. If this thread was busy for long, a worker could not report meanwhile."""
        now = time.monotonic()
        passed_s, self._looked = min(now - self._looked, _POLL_S), now
        for share in shares:
            share.silent_s += passed_s

    def _read(self, share: _Share, ref: Any) -> Sequence[tuple[int, Completion]]:
        """Read the answer to one call; return the completions in it."""
        worker = share.worker
        assert worker is not None
        is_report = ref == share.report
        if is_report:
            share.report = None
        else:
            share.submits.remove(ref)
        try:
            report = wait(ref, who=worker.name, what="generate", timeout_s=self._timeout_s)
        except FAILURES as error:
            self._replace(share, error)
            return ()
        if not is_report:
            return ()
        share.idle_s = report.idle_s
        if report.finished:
            share.silent_s = 0.0
            self._workers.progressed(share.number)
        for number, _ in report.finished:
            del share.unfinished[number]
        return report.finished

    def _replace_silent(self, share: _Share) -> None:
        """Replace a worker that has missed its deadline, unless it was replaced meanwhile."""
        worker = share.worker
        if worker is not None and self._workers.serving(share.number) is worker:
            self._replace(share, deadline_error(worker.name, "generate", self._timeout_s, asked=worker.actor))

    def _replace(self, share: _Share, error: Failure) -> None:
        """Replace a worker that failed, unless another thread does. `_send` gives the new one all requests."""
        worker = share.worker
        if worker is not None and self._workers.serving(share.number) is worker:
            self._workers.replace(worker, error)
            self._looked = time.monotonic()  # meanwhile nobody asked the others


def _ready(refs: list[Any]) -> list[Any]:
    """Wait a moment for the first of several answers; return all that are there."""
    if not refs:  # all workers are being replaced
        time.sleep(_LOOK_S)
        return []
    ray.wait(refs, num_returns=1, timeout=_LOOK_S)
    ready, _ = ray.wait(refs, num_returns=len(refs), timeout=0)
    return ready
