"""The event loop that async reward functions run on: a call that blocks it costs only itself."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
import traceback
from collections.abc import Awaitable, Coroutine, Generator, Iterator
from concurrent.futures import CancelledError, Future, InvalidStateError, wait
from contextlib import contextmanager, suppress
from contextvars import ContextVar, copy_context
from typing import Any

_CANCEL_S = 5.0
"""Seconds that an async call may take to end once it is cancelled."""
_LEAST_WAIT_S = 0.01
_BLOCKED_S = 0.2
"""A step that takes longer blocks the loop."""


class OverdueError(Exception):
    """An async call took longer than it may. Never leaves this package."""

    def __init__(self, stack: str = "") -> None:
        super().__init__()
        self.stack = stack
        """The stack of the call, if it blocks the loop."""


class MovedError(Exception):
    """Another call blocks the loop, which was given up: this call has to be made again on a new loop."""


class _LoopCall:
    """One call on the loop. Its clock stops while other calls run."""

    def __init__(self, started: float, busy_before_s: float) -> None:
        self.future: Future[Any] = Future()
        self.started = started
        self.busy_before_s = busy_before_s
        self.own_s = 0.0
        self.task: asyncio.Task[None] | None = None

    def end(self, value: Any = None, error: BaseException | None = None) -> None:
        """Keep the first result; a call that was moved may still end on its old loop."""
        with suppress(InvalidStateError):
            if error is None:
                self.future.set_result(value)
            else:
                self.future.set_exception(error)


_OWNER: ContextVar[_LoopCall | None] = ContextVar("owner", default=None)
"""The call that a task belongs to. A task that the call starts inherits it."""


class EventLoop:
    """An event loop on a thread of its own.

    Only one task runs at a time, so a call that blocks (``time.sleep``, a synchronous client, a long computation) holds
    up all others. Each step of each task is therefore timed: a call's deadline counts its own waiting and running, and
    not what others ran. A call that still blocks the loop at its deadline is left to itself with the loop's thread,
    since no thread can be ended; the others get `MovedError` and are made again on a new loop.
    """

    def __init__(self) -> None:
        self.given_up = False
        self._lock = threading.Lock()
        self._calls: set[_LoopCall] = set()
        self._busy_s = 0.0
        """Running time (seconds) of all finished steps of calls that are waited for."""
        self._step: tuple[_LoopCall | None, float] | None = None
        """The call whose step runs now, and since when."""
        self._loop = asyncio.new_event_loop()
        self._loop.set_task_factory(self._task)
        self._thread = threading.Thread(target=self._loop.run_forever, name="async rewards", daemon=True)
        self._thread.start()

    def run(self, awaitable: Awaitable[Any], timeout_s: float | None = None) -> Any:
        """Run it to its end and return the result, or raise what it raises.

        Raises:
            OverdueError: it took longer than ``timeout_s``. It is cancelled, or left to itself if it does not let go.
            MovedError: another call blocks this loop.
        """
        with self._lock:
            if self.given_up:
                _discard(awaitable)
                raise MovedError
            call = _LoopCall(*self._now())
            self._calls.add(call)
        try:
            self._loop.call_soon_threadsafe(self._begin, call, awaitable)
            while timeout_s is None or (left := timeout_s - self._spent(call)) > 0:
                wait([call.future], None if timeout_s is None else max(left, _LEAST_WAIT_S))
                if call.future.done():
                    return call.future.result()
            raise OverdueError(self._end(call))
        finally:
            with self._lock:
                self._calls.discard(call)

    def close(self) -> None:
        """Stop the loop, as soon as no call blocks it."""
        self._loop.call_soon_threadsafe(self._loop.stop)

    def _begin(self, call: _LoopCall, awaitable: Awaitable[Any]) -> None:
        if self.given_up:
            _discard(awaitable)
            return
        context = copy_context()
        context.run(_OWNER.set, call)
        call.task = self._loop.create_task(_ended(call, awaitable), context=context)
        call.task._log_destroy_pending = False  # pyright: ignore - a call that is left to itself has been reported
        call.task.add_done_callback(lambda _: _discard(awaitable))  # it may have been cancelled before it began

    def _end(self, call: _LoopCall) -> str:
        """Cancel an overdue call; returns where it is if it blocks the loop."""
        self._loop.call_soon_threadsafe(lambda: call.task and call.task.cancel())
        end = time.monotonic() + _CANCEL_S
        while time.monotonic() < end:
            wait([call.future], _BLOCKED_S)
            if call.future.done():
                return ""
            if self._is_blocked_by(call):
                return self._give_up(call)
        return ""

    def _give_up(self, call: _LoopCall) -> str:
        """Leave the loop to the step that blocks it, and move all other calls; returns where that step is."""
        frame = sys._current_frames().get(self._thread.ident or 0)
        with self._lock:
            self.given_up = True
            others = self._calls - {call}
        for other in others:
            other.end(error=MovedError())
        self._loop.call_soon_threadsafe(self._wind_up)
        return "".join(traceback.format_stack(frame)) if frame is not None else ""

    def _wind_up(self) -> None:
        """Cancel all tasks and stop the loop. Runs on the loop, once nothing blocks it any more."""
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.call_later(_CANCEL_S, self._loop.stop)

    def _is_blocked_by(self, call: _LoopCall) -> bool:
        """Return whether the call blocks the loop, or a task that an earlier call left behind."""
        with self._lock:
            if self._step is None or time.perf_counter() - self._step[1] < _BLOCKED_S:
                return False
            return self._step[0] is call or self._step[0] not in self._calls

    def _now(self) -> tuple[float, float]:
        """Return the time, and for how long steps of calls have run up to it. The caller holds the lock."""
        now = time.perf_counter()
        counts = self._step is not None and self._step[0] in self._calls
        return now, self._busy_s + (now - self._step[1] if self._step and counts else 0.0)

    def _spent(self, call: _LoopCall) -> float:
        """Return the seconds since the call began, without those in which other waiting calls ran."""
        with self._lock:
            now, busy_s = self._now()
            own_s = call.own_s + (now - self._step[1] if self._step and self._step[0] is call else 0.0)
        others_s = busy_s - call.busy_before_s - own_s
        return now - call.started - others_s

    @contextmanager
    def timed_step(self) -> Iterator[None]:
        """Count the block as a step of the call that the running task belongs to."""
        call, start = _OWNER.get(), time.perf_counter()
        with self._lock:
            self._step = (call, start)
        try:
            yield
        finally:
            with self._lock:
                self._step = None
                if call in self._calls:
                    spent = time.perf_counter() - start
                    self._busy_s += spent
                    call.own_s += spent

    def _task(self, loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
        """Make a task whose steps are timed."""
        return asyncio.Task(_TimedSteps(coroutine, self), loop=loop, **options)


class _TimedSteps(Coroutine[Any, Any, Any]):
    """A coroutine, each step of which is timed. On a loop that was given up it is cancelled at its next step."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], loop: EventLoop) -> None:
        self._coroutine = coroutine
        self._loop = loop

    def send(self, value: Any, /) -> Any:
        with self._loop.timed_step():
            if self._loop.given_up:
                return self._coroutine.throw(asyncio.CancelledError())
            return self._coroutine.send(value)

    def throw(self, *error: Any) -> Any:
        with self._loop.timed_step():
            return self._coroutine.throw(*error)

    def close(self) -> None:
        self._coroutine.close()

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._coroutine.__await__()


async def _ended(call: _LoopCall, awaitable: Awaitable[Any]) -> None:
    """Await it and hand over its result."""
    try:
        value = await awaitable
    except asyncio.CancelledError:
        call.end(error=CancelledError("it was cancelled"))
        raise
    except BaseException as error:  # the thread that waits for the call raises it
        call.end(error=error)
        if not isinstance(error, Exception | SystemExit):
            raise
    else:
        call.end(value)


def _discard(awaitable: Awaitable[Any]) -> None:
    """Close a coroutine that never began, so that Python does not warn of it; one that has ended is left alone."""
    if isinstance(awaitable, Coroutine):
        awaitable.close()
