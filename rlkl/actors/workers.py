"""The rollout workers of a run. A worker that ends or hangs is replaced by another one.

A worker either serves or is being replaced; one lock guards this state. While a worker is being replaced, no other
thread can ask it anything, and a publish waits. The new worker serves once its engine has started, has taken in the
weights that were published last, and agrees with the learner. The records here never change.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayTaskError

from rlkl.actors.calls import tail, wait
from rlkl.errors import ActorDiedError, DeadlineError
from rlkl.weights import Receipt

logger = logging.getLogger(__name__)

MOST = 2
"""New starts in a row of one worker that finishes nothing in between; after the next failure the run ends."""

_OVER = "the rollout workers have ended with the run"

Failure = ActorDiedError | DeadlineError
FAILURES = (ActorDiedError, DeadlineError)
"""Errors of calls after which a worker is replaced."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Starting:
    """The way to start a worker anew."""

    spawn: Callable[[int], Any]
    """Start the process of the worker with this number and return its actor; the reservation must be free."""
    start: Callable[[Any], Any]
    """Let an actor start its engine; return the reference to wait for."""
    timeout_s: float
    logs: Sequence[str]
    """Files with the last lines of the run's first workers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Publish:
    """Weights that every worker gets."""

    receive: Callable[[Any], Any]
    """Let an actor take them in; return the reference to its receipt."""
    check: Callable[[str, Receipt], object]
    """Compare the receipt of the worker with this name with the learner; raise `WeightSyncError`."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Worker:
    """A worker that serves. The one that takes its place is another object."""

    number: int
    name: str
    actor: Any
    """The handle of a `rlkl.actors.shells.RolloutWorker`."""
    log: str = ""
    """File with its last lines."""
    receipt: Receipt | None = None
    """Its report on the weights that it was brought to before it served; None if nothing was published yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A call to a worker that has not been waited for."""

    worker: Worker
    make: Callable[[Any], Any]
    """Make the call on an actor; return the reference to its answer."""
    answer: Any
    """The reference."""


class Workers:
    """Calls the workers, and replaces those that fail. Several threads may use it at once."""

    def __init__(
        self, actors: Sequence[Any], names: Sequence[str], *, timeout_s: float, starting: Starting | None = None
    ) -> None:
        """Take actors whose engines have started.

        ``names``: of the workers in messages. ``timeout_s``: the deadline of each call. Without ``starting``, a worker
        that fails ends the run.
        """
        logs = [""] * len(actors) if starting is None else starting.logs
        self.names, self.timeout_s, self._starting = list(names), timeout_s, starting
        self._workers: list[Worker | None] = [
            Worker(number=number, name=name, actor=actor, log=log)
            for number, (actor, name, log) in enumerate(zip(actors, names, logs, strict=True))
        ]
        """None: it is being replaced."""
        self._in_a_row = [0] * len(actors)
        self._published: Publish | None = None
        """Changes only while no worker is being replaced."""
        self._ended: Exception | None = None
        """The error of all further calls."""
        self._changed = threading.Condition()

    def __len__(self) -> int:
        return len(self._workers)

    def serving(self, number: int) -> Worker | None:
        """Return the worker with this number, or None while it is being replaced.

        Raises the error that a replacement ended with, and `ActorDiedError` after the end of the run.
        """
        with self._changed:
            self._check()
            return self._workers[number]

    def all_serving(self) -> list[Worker]:
        """Return all workers; first wait until none is being replaced. Raises the errors of `serving`."""
        with self._changed:
            self._changed.wait_for(lambda: self._ended is not None or None not in self._workers)
            self._check()
            return [worker for worker in self._workers if worker is not None]

    def progressed(self, number: int) -> None:
        """Note that a worker has finished something."""
        with self._changed:
            self._in_a_row[number] = 0

    def call(self, make: Callable[[Any], Any]) -> list[Call]:
        """Make a call on every worker, once all of them serve; see `Call.make`."""
        with self._changed:
            return [Call(worker=one, make=make, answer=make(one.actor)) for one in self.all_serving()]

    def collect(self, calls: Sequence[Call], *, what: str) -> list[Any]:
        """Wait for calls under one deadline; return the answers in order.

        A worker that fails is replaced, and the call is made again on the new one; see `replace`.
        """

        def again(call: Call, worker: Worker) -> Any:
            while True:
                try:
                    return wait(call.make(worker.actor), who=worker.name, what=what, timeout_s=self.timeout_s)
                except FAILURES as error:
                    worker = self.replace(worker, error)

        return self._collect(calls, again, what=what)

    def publish(self, publish: Publish) -> list[Receipt]:
        """Let every worker take in weights, once all of them serve; return their reports in order.

        A worker that fails is replaced; the report is that of the new one, which takes in the same weights.
        """
        with self._changed:
            calls = self.call(publish.receive)
            self._published = publish
        return self._collect(calls, lambda _, worker: worker.receipt, what="take in weights")

    def replace(self, worker: Worker, error: Failure) -> Worker:
        """Start another worker in the place of one whose call ended with ``error``; return the one that serves there.

        If another thread replaces it, wait for that; if that is done already, do nothing. Raises ``error`` if the
        worker cannot be replaced, or has failed too often in a row. Every later call then raises that error, too.
        """
        number = worker.number
        with self._changed:
            self._changed.wait_for(lambda: self._ended is not None or self._workers[number] is not None)
            self._check()
            now = self._workers[number]
            if now is not None and now is not worker:
                return now
            self._workers[number] = None
        try:
            new = self._started_anew(worker, error)
        except BaseException as final:
            self._end(final if isinstance(final, Exception) else ActorDiedError(_OVER))
            raise
        with self._changed:
            self._workers[number] = new
            self._changed.notify_all()
        return new

    def close(self) -> None:
        """Start no further worker: the run has ended. Every later call raises `ActorDiedError`."""
        self._end(ActorDiedError(_OVER))

    def _end(self, error: Exception) -> None:
        with self._changed:
            self._ended = self._ended or error
            self._changed.notify_all()

    def _check(self) -> None:
        """Raise if no worker can be asked. After the end of the run, Ray would start anew for a thread that asks it."""
        if self._ended is not None:
            raise self._ended
        if not ray.is_initialized():
            raise ActorDiedError(_OVER)

    def _collect(self, calls: Sequence[Call], again: Callable[[Call, Worker], Any], *, what: str) -> list[Any]:
        end, answers = time.monotonic() + self.timeout_s, []
        for call in calls:
            name, left_s = call.worker.name, max(end - time.monotonic(), 1.0)
            try:
                answers.append(wait(call.answer, who=name, what=what, timeout_s=left_s, limit_s=self.timeout_s))
            except FAILURES as error:
                answers.append(again(call, self.replace(call.worker, error)))
        return answers

    def _started_anew(self, worker: Worker, error: Failure) -> Worker:
        """Start actors until one of them is fit to serve in the place of ``worker``. See `replace`."""
        number, actor, log = worker.number, worker.actor, worker.log
        while True:
            starting = self._starting
            if starting is None or isinstance(error.__cause__, RayTaskError):  # its code raised: it would again
                raise error
            if self._in_a_row[number] == MOST:
                raise type(error)(
                    f"{error} It was started anew {MOST} times, and ended each time before it had finished anything."
                    f"{tail(worker.name, log)}"
                ) from error
            logger.warning("%s Another one starts in its place.", f"{error}".rstrip(".") + ".")
            with self._changed:
                self._check()
                self._in_a_row[number] += 1
                ray.kill(actor)
                actor, log = starting.spawn(number), ""
            try:
                log = self._wait_for_start(actor.log_file.remote(), worker.name)
                self._wait_for_start(starting.start(actor), worker.name)
                receipt = self._caught_up(actor, worker.name)
            except FAILURES as again:
                error = again
                continue
            return Worker(number=number, name=worker.name, actor=actor, log=log, receipt=receipt)

    def _wait_for_start(self, ref: Any, name: str) -> Any:
        assert self._starting is not None
        return wait(ref, who=name, what="start again", timeout_s=self._starting.timeout_s)

    def _caught_up(self, actor: Any, name: str) -> Receipt | None:
        """Bring an actor to the weights that were published last, and prove it. Raises `WeightSyncError`."""
        published = self._published
        if published is None:
            return None
        receipt = wait(published.receive(actor), who=name, what="take in weights", timeout_s=self.timeout_s)
        published.check(name, receipt)
        return receipt
