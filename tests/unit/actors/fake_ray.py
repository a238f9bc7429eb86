"""Stands in for Ray: actors are objects of this process, each with a real thread for each group of its calls."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ALL_COMPLETED, FIRST_COMPLETED, Future
from concurrent.futures import wait as wait_for_futures
from functools import partial
from typing import Any

import pytest
import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

TIMEOUT_S = 60.0
"""No event of a test takes so long."""


class ProcessEnds(BaseException):
    """Raised by a host: its process ends in the middle of a call."""


class FakeActor:
    """Calls the methods of a host, as Ray does: those of one group one after the other."""

    def __init__(self, host: Any) -> None:
        self.host = host
        self._calls: dict[str, queue.SimpleQueue[Callable[[], None]]] = {}
        self._unanswered: set[Future[Any]] = set()
        self._lock = threading.Lock()
        self.is_dead = False

    def __getattr__(self, name: str) -> _Method:
        if name.startswith("_"):
            raise AttributeError(name)
        return _Method(self, name)

    def kill(self) -> None:
        """Let the process end; every call that it has not answered fails."""
        with self._lock:
            self.is_dead = True
            unanswered, self._unanswered = self._unanswered, set()
        for answer in unanswered:
            answer.set_exception(RayActorError())

    def ask(self, method: str, arguments: Sequence[Any], group: str) -> Future[Any]:
        answer: Future[Any] = Future()
        with self._lock:
            if self.is_dead:
                answer.set_exception(RayActorError())
                return answer
            self._unanswered.add(answer)
            if group not in self._calls:
                self._calls[group] = queue.SimpleQueue()
                threading.Thread(target=self._serve, args=(self._calls[group],), daemon=True).start()
        self._calls[group].put(partial(self._answer, answer, method, arguments))
        return answer

    def _serve(self, calls: queue.SimpleQueue[Callable[[], None]]) -> None:
        while not self.is_dead:
            calls.get()()

    def _answer(self, answer: Future[Any], method: str, arguments: Sequence[Any]) -> None:
        error, value = None, None
        try:
            value = getattr(self.host, method)(*[one.result() if isinstance(one, Future) else one for one in arguments])
        except ProcessEnds:
            self.kill()
        except Exception as raised:
            error = raised
        with self._lock:
            if answer not in self._unanswered:
                return
            self._unanswered.discard(answer)
        if error is None:
            answer.set_result(value)
        else:
            answer.set_exception(RayTaskError(method, "no trace", error))


class _Method:
    def __init__(self, actor: FakeActor, name: str, group: str = "") -> None:
        self._actor, self._name, self._group = actor, name, group

    def options(self, *, concurrency_group: str) -> _Method:
        return _Method(self._actor, self._name, concurrency_group)

    def remote(self, *arguments: Any) -> Future[Any]:
        return self._actor.ask(self._name, arguments, self._group)


class FakeRay:
    """The part of Ray that the modules of `rlkl.actors` use."""

    def __init__(self) -> None:
        self.is_up = True
        self.spawned: list[FakeActor] = []
        """Actors that `remote` has started."""

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("get", "wait", "kill", "put", "remote", "is_initialized"):
            monkeypatch.setattr(ray, name, getattr(self, name))

    def is_initialized(self) -> bool:
        return self.is_up

    def get(self, ref: Future[Any], timeout: float | None = None) -> Any:
        self._check()
        try:
            return ref.result(timeout)
        except TimeoutError:
            raise GetTimeoutError from None

    def wait(
        self, refs: Sequence[Future[Any]], *, num_returns: int = 1, timeout: float | None = None
    ) -> tuple[list[Future[Any]], list[Future[Any]]]:
        self._check()
        when = ALL_COMPLETED if num_returns == len(refs) > 1 else FIRST_COMPLETED
        wait_for_futures(refs, timeout, return_when=when)
        ready = [ref for ref in refs if ref.done()][:num_returns]
        return ready, [ref for ref in refs if ref not in ready]

    def kill(self, actor: FakeActor) -> None:
        self._check()
        actor.kill()

    def put(self, value: Any) -> Any:
        return value

    def remote(self, host: type) -> _Class:
        self._check()
        return _Class(self, host)

    def _check(self) -> None:
        """Fail if Ray has ended: the real one would start anew."""
        assert self.is_up, "Ray would start anew"


class _Class:
    def __init__(self, fake: FakeRay, host: type) -> None:
        self._fake, self._host = fake, host

    def options(self, **options: Any) -> _Class:
        return self

    def remote(self) -> FakeActor:
        self._fake.spawned.append(FakeActor(self._host()))
        return self._fake.spawned[-1]


class Gate:
    """A place where a thread waits until a test opens it; the test can wait until a thread is there."""

    def __init__(self) -> None:
        self._reached, self._opened = threading.Event(), threading.Event()

    def open(self) -> None:
        self._opened.set()

    def wait_until_reached(self) -> None:
        assert self._reached.wait(TIMEOUT_S), "nobody came to the gate"

    def pass_through(self) -> None:
        self._reached.set()
        assert self._opened.wait(TIMEOUT_S), "nobody opened the gate"


def in_thread(function: Callable[[], Any]) -> Future[Any]:
    """Run a function on a thread of its own."""
    done: Future[Any] = Future()

    def run() -> None:
        try:
            done.set_result(function())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return done
