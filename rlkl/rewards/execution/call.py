"""Call a reward function in its own process, and turn results and errors into scores and failures."""

from __future__ import annotations

import inspect
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from rlkl.rewards.execution.event_loop import EventLoop, MovedError, OverdueError
from rlkl.rewards.function.arguments import Call, opened
from rlkl.rewards.function.result import Failure, Outcome, outcome_of, outcomes_of, raised

_CLOSE_S = 30.0
"""Seconds that an async ``close`` may take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallResult:
    """The result of one call: outcomes, or a failure."""

    outcomes: tuple[Outcome, ...] = ()
    """One for each sample of the call, unless it failed as a whole."""
    failure: Failure | None = None
    """The reason if the call failed as a whole."""
    seconds: float = 0.0


class RewardFunction:
    """A reward function, or an instance with ``setup`` and ``close``, in the process that calls it."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._loop: EventLoop | None = None
        self._lock = threading.Lock()
        self._setup_is_async = False
        self.is_async = is_async(function)

    def setup(self) -> None:
        """Call the function's ``setup``, if it has one; its errors are passed on."""
        value = self._hook("setup")
        if inspect.isawaitable(value):
            self._setup_is_async = True
            self._running_loop().run(value)

    def close(self) -> None:
        """Call the function's ``close``, if it has one."""
        value = self._hook("close")
        if inspect.isawaitable(value):
            self._running_loop().run(value, _CLOSE_S)
        if self._loop is not None:
            self._loop.close()
            self._loop = None

    def call(self, call: Call, timeout_s: float | None = None) -> CallResult:
        """Call the function; its errors become failures. ``timeout_s`` holds for async functions only."""
        start = time.perf_counter()
        try:
            value = self._called(call, timeout_s)
            seconds = time.perf_counter() - start
            outcomes = _outcomes(value, call)
        except OverdueError as error:
            return CallResult(failure=overdue(timeout_s, error.stack), seconds=time.perf_counter() - start)
        except (Exception, SystemExit) as error:  # whatever a user's function raises is counted against its sample
            return CallResult(failure=raised(error), seconds=time.perf_counter() - start)
        if isinstance(outcomes, Failure):
            return CallResult(failure=outcomes, seconds=seconds)
        return CallResult(outcomes=outcomes, seconds=seconds)

    def _called(self, call: Call, timeout_s: float | None) -> Any:
        """Return the function's value. Await an async function, and call it again if another call blocked the loop."""
        while True:
            value = self._function(**opened(call.arguments))
            if not inspect.isawaitable(value):
                return value
            with suppress(MovedError):
                return self._running_loop().run(value, timeout_s)

    def _hook(self, name: str) -> Any:
        hook = getattr(self._function, name, None)
        return hook() if callable(hook) else None

    def _running_loop(self) -> EventLoop:
        """Return the event loop of all calls. A loop that replaces a blocked one runs an async ``setup`` again."""
        with self._lock:
            loop = self._loop
            if loop is None or loop.given_up:
                replaces, loop = loop is not None, EventLoop()
                if replaces and self._setup_is_async:
                    loop.run(self._hook("setup"))
                self._loop = loop
            return loop


def _outcomes(value: Any, call: Call) -> tuple[Outcome, ...] | Failure:
    return (outcome_of(value, call.tokens[0]),) if call.unit == "sample" else outcomes_of(value, call.tokens)


def is_async(function: Callable[..., Any]) -> bool:
    """Return whether a call returns an awaitable."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


def overdue(timeout_s: float | None, stack: str = "", *, key: str = "timeout_s") -> Failure:
    """Return the failure of a call that took too long; ``key`` is the recipe key that sets the limit."""
    limit = f"took longer than {key} = {timeout_s:g}"
    return Failure(kind="timeout", what=limit, detail=f"if it needs more, raise {key}", traceback=stack)
