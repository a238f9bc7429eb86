"""Runs an engine on a thread of its own: completions are sampled while requests, probes and weights come and go."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, TypeVar

from rlkl.rollout.engine import Engine, Request, SteppedEngine
from rlkl.types import Completion

T = TypeVar("T")

Finished = list[tuple[int, Completion]]
"""Completions with their requests' numbers."""

_HAND_OVER_S = 0.05
"""Seconds between two parts of finished completions, at least: each part costs about a millisecond."""


class EngineLoop:
    """Lets the engine step while it has requests. Calls from other threads run between two of its steps.

    An error in sampling ends the loop, and every later call raises it. An error of a call is the caller's alone.
    """

    def __init__(self, make: Callable[[], Engine], *, at_once: int | None = None) -> None:
        """Start the thread and make the engine on it; raises what ``make`` raises.

        ``at_once``: requests that an engine which only streams begins together; None: all that are there.
        """
        self._at_once = at_once
        self._jobs: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any] | None]] = queue.SimpleQueue()
        """Work to do between two steps, each with the result that its sender waits for, or None."""
        self._finished: Finished = []
        self._changed = threading.Condition()
        self._failure: BaseException | None = None
        self._idle_s = 0.0
        self._idle_since: float | None = None
        self._has_sampled = False
        """Idle time counts from the first completions on."""
        self._handed_over = 0.0
        started: Future[None] = Future()
        threading.Thread(target=self._run, args=(make, started), name="engine", daemon=True).start()
        started.result()

    def submit(self, requests: Sequence[tuple[int, Request]]) -> None:
        """Begin to sample one completion a request. All of them are in the engine before its next step."""
        self._send(lambda: self._engine.add(requests), None)

    def call(self, function: Callable[[Engine], T]) -> T:
        """Run ``function`` with the engine between two steps and return its result."""

        def job() -> T:
            if isinstance(self._engine, _Streamed):
                self._engine.end_begun()
            return function(self._plain)

        return self._ask(job)

    def update(self, version: int, load: Callable[[Engine], T]) -> T:
        """Run ``load`` as `call` does; tokens that are sampled afterwards count as sampled by ``version``."""

        def job() -> T:
            self._engine.begin_version(version)
            return load(self._plain)

        return self._ask(job)

    def finished(self, timeout_s: float) -> Finished:
        """Return the completions that have finished since the last call; wait for the first, at most ``timeout_s``.

        Two parts are some time apart, so that a part holds many completions if they finish quickly.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._finished or self._failure is not None, timeout_s)
            pause_s = self._handed_over + _HAND_OVER_S - time.monotonic()
            if pause_s > 0:  # ends at once if the engine runs out of requests
                self._changed.wait_for(lambda: self._failure is not None or self._idle_since is not None, pause_s)
            self._raise_failure()
            found, self._finished = self._finished, []
            self._handed_over = time.monotonic()
            return found

    @property
    def idle_s(self) -> float:
        """Seconds in which the engine had no request, since its start."""
        with self._changed:
            return self._idle_s + (0.0 if self._idle_since is None else time.monotonic() - self._idle_since)

    def _ask(self, job: Callable[[], T]) -> T:
        done: Future[T] = Future()
        self._send(job, done)
        return done.result()

    def _send(self, job: Callable[[], Any], done: Future[Any] | None) -> None:
        with self._changed:
            self._raise_failure()
            self._jobs.put((job, done))

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _run(self, make: Callable[[], Engine], started: Future[None]) -> None:
        try:
            self._plain = make()
            streamed = _Streamed(self._plain, self._at_once)
            self._engine = self._plain if isinstance(self._plain, SteppedEngine) else streamed
        except (Exception, SystemExit) as error:
            started.set_exception(error)
            return
        started.set_result(None)
        try:
            while True:
                self._do_jobs()
                self._has_sampled = True
                self._hand_over(self._engine.step())
        except (Exception, SystemExit) as error:
            self._fail(error)

    def _do_jobs(self) -> None:
        """Do what has been sent; without requests in the engine, wait for more."""
        if not self._engine.is_busy and self._has_sampled:
            with self._changed:
                self._idle_since = time.monotonic()
                self._changed.notify_all()
        while not (self._engine.is_busy and self._jobs.empty()):
            job, done = self._jobs.get()
            if done is None:
                job()
                continue
            try:
                done.set_result(job())
            except (Exception, SystemExit) as error:
                done.set_exception(error)
        with self._changed:
            if self._idle_since is not None:
                self._idle_s += time.monotonic() - self._idle_since
                self._idle_since = None

    def _hand_over(self, finished: Finished) -> None:
        if finished:
            with self._changed:
                self._finished += finished
                self._changed.notify_all()

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            self._failure = error
            self._changed.notify_all()
            while not self._jobs.empty():
                if (done := self._jobs.get()[1]) is not None:
                    done.set_exception(error)


class _Streamed:
    """Makes a `SteppedEngine` of an engine that only streams: a step ends with the next finished completion."""

    def __init__(self, engine: Engine, at_once: int | None) -> None:
        self._engine, self._at_once = engine, at_once
        self._version = 0
        self._added: list[tuple[int, Request]] = []
        self._numbers: list[int] = []
        self._stream: Iterator[tuple[int, Completion]] | None = None
        self._kept: Finished = []

    def add(self, requests: Sequence[tuple[int, Request]]) -> None:
        self._added += requests

    @property
    def is_busy(self) -> bool:
        return bool(self._added or self._kept) or self._stream is not None

    def step(self) -> Finished:
        kept, self._kept = self._kept, []
        return kept or self._next()

    def begin_version(self, version: int) -> None:
        """See `SteppedEngine.begin_version`."""
        self.end_begun()
        self._version = version

    def end_begun(self) -> None:
        """End the completions that have begun, and keep them for `step`."""
        while self._stream is not None:
            self._kept += self._next()

    def _next(self) -> Finished:
        if self._stream is None:
            begun = self._added[: self._at_once]
            del self._added[: len(begun)]
            self._numbers = [number for number, _ in begun]
            self._stream = self._engine.stream([request for _, request in begun])
        for index, completion in self._stream:
            return [(self._numbers[index], replace(completion, weights_version=self._version))]
        self._stream = None
        return []
