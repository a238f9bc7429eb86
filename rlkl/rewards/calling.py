"""Calling a reward function where it lives, and turning whatever happens into scores and failures."""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from rlkl.rewards.arguments import Call, opened
from rlkl.rewards.result import Failure, Outcome, outcome_of, outcomes_of, raised

_CANCEL_S = 5.0
"""How long an async call may take to end once it is cancelled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came of one call."""

    outcomes: tuple[Outcome, ...] = ()
    """One for each sample of the call, unless it failed as a whole."""
    failure: Failure | None = None
    """Why the call failed as a whole."""
    seconds: float = 0.0


class EventLoop:
    """An event loop on a thread of its own, so that async functions run whatever this thread is doing."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="async rewards", daemon=True).start()

    def run(self, awaitable: Awaitable[Any], timeout_s: float | None = None) -> Any:
        """What it comes to; raises `OverdueError` once it is cancelled, or where it does not let itself be."""
        future = asyncio.run_coroutine_threadsafe(_limited(awaitable, timeout_s), self._loop)
        try:
            return future.result(None if timeout_s is None else timeout_s + _CANCEL_S)
        except TimeoutError:
            if future.done():  # the function's own
                raise
            raise OverdueError from None

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)


class OverdueError(Exception):
    """An async call took longer than it may. Never leaves this package."""


class Callee:
    """A reward function, or an instance with ``setup`` and ``close``, in the process that calls it."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._loop: EventLoop | None = None
        self._lock = threading.Lock()
        self.is_async = is_async(function)

    def setup(self) -> None:
        """Call the function's ``setup``, if it has one; whatever that raises is raised."""
        self._hook("setup")

    def close(self) -> None:
        """Call the function's ``close``, if it has one."""
        self._hook("close")
        if self._loop is not None:
            self._loop.close()
            self._loop = None

    def call(self, call: Call, timeout_s: float | None = None) -> Answer:
        """Never raises for what the function does. ``timeout_s`` holds for async functions only."""
        start = time.perf_counter()
        try:
            value = self._finished(self._function(**opened(call.arguments)), timeout_s)
            seconds = time.perf_counter() - start
            outcomes = _outcomes(value, call)
        except OverdueError:
            return Answer(failure=overdue(timeout_s), seconds=time.perf_counter() - start)
        except (Exception, SystemExit) as error:  # whatever a user's function raises is counted against its sample
            return Answer(failure=raised(error), seconds=time.perf_counter() - start)
        if isinstance(outcomes, Failure):
            return Answer(failure=outcomes, seconds=seconds)
        return Answer(outcomes=outcomes, seconds=seconds)

    def _hook(self, name: str) -> None:
        hook = getattr(self._function, name, None)
        if callable(hook):
            self._finished(hook(), None)

    def _finished(self, value: Any, timeout_s: float | None) -> Any:
        """The value itself, or what an async function comes to."""
        if not inspect.isawaitable(value):
            return value
        with self._lock:
            self._loop = self._loop or EventLoop()
        return self._loop.run(value, timeout_s)


def _outcomes(value: Any, call: Call) -> tuple[Outcome, ...] | Failure:
    return (outcome_of(value, call.tokens[0]),) if call.unit == "sample" else outcomes_of(value, call.tokens)


async def _limited(awaitable: Awaitable[Any], timeout_s: float | None) -> Any:
    limit = asyncio.timeout(timeout_s)
    try:
        async with limit:
            return await awaitable
    except TimeoutError:
        if limit.expired():
            raise OverdueError from None
        raise


def is_async(function: Callable[..., Any]) -> bool:
    """Whether a call gives something to await."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


def overdue(timeout_s: float | None, stack: str = "") -> Failure:
    """A failure by taking too long."""
    return Failure(kind="timeout", what=f"took longer than timeout_s = {timeout_s:g}", traceback=stack)
