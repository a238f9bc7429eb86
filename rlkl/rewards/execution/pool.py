"""Run the calls of a reward function: at once, or on one of several workers."""

from __future__ import annotations

import queue
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from typing import Protocol

from rlkl.errors import RewardInputError
from rlkl.rewards.execution.call import CallResult, RewardFunction, overdue
from rlkl.rewards.function.arguments import Call
from rlkl.rewards.function.result import Failure, raised
from rlkl.rewards.function.source import Source


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSpec:
    """The settings of a worker in another process."""

    name: str
    """The reward's."""
    source: Source
    timeout_s: float
    start_timeout_s: float
    memory_mb: int | None = None
    cpus: float = 1.0
    gpus: float = 0.0


class Worker(Protocol):
    """Runs one call at a time. All methods but `abandon` are called on one thread."""

    @property
    def broken(self) -> Failure | None:
        """The failure of a restart after a call had ended the worker; all further calls fail with it."""
        ...

    def start(self) -> None:
        """Start the worker; raise `RewardInputError` if that fails."""
        ...

    def answer(self, calls: Sequence[Call]) -> Iterator[CallResult]:
        """Yield one answer a call, in order, each as soon as it is there.

        Every call gets an answer within its time limit, even if the function fails. The next call then finds the
        function up, or the worker is ``broken``.
        """
        ...

    def close(self) -> None: ...

    def abandon(self) -> None:
        """End a call that is under way, and start nothing anew; called from another thread, before `close`."""
        ...


CLOSED = Failure(kind="crashed", what="was closed before the call was over")
"""The answer to calls that a worker was closed before."""

_Waiting = tuple[Call, Future[CallResult]]

_MOST_AT_ONCE = 32
_AT_ONCE_S = 0.005
"""Most work that a worker takes at once, in seconds."""


class Pool(Protocol):
    """Accepts calls; each returns a future."""

    eager: bool
    """Whether calls run beside the caller, so submit each call as early as possible."""

    def submit(self, call: Call) -> Future[CallResult]: ...

    def close(self) -> None: ...


class InlinePool:
    """Runs each call before `submit` returns, one call at a time."""

    eager = False

    def __init__(self, function: RewardFunction, name: str) -> None:
        self._function = function
        self._lock = threading.Lock()
        set_up(function, name)

    def submit(self, call: Call) -> Future[CallResult]:
        future: Future[CallResult] = Future()
        with self._lock:
            future.set_result(self._function.call(call))
        return future

    def close(self) -> None:
        self._function.close()


class WorkerPool:
    """Calls go to whichever worker is free. Each worker has a thread here, which waits for it."""

    eager = True

    def __init__(
        self, workers: Sequence[Worker], *, together: bool = False, on_close: Callable[[], None] = lambda: None
    ) -> None:
        """Begin to start all workers at once; `ready` waits for them.

        ``together``: hand quick calls over several at a time, if there is only one worker. Several workers always get
        one call each: a call that takes long would hold up others that another worker could make.
        """
        self._workers = workers
        self._together = together and len(workers) == 1
        self._on_close = on_close
        self._calls: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._broken: BaseException | None = None
        """The error of all further calls."""
        self._unbroken, self._lock = len(workers), threading.Lock()
        self._started: list[Future[None]] = [Future() for _ in workers]
        self._threads = [
            threading.Thread(target=self._serve, args=pair, name="reward worker", daemon=True)
            for pair in zip(workers, self._started, strict=True)
        ]
        for thread in self._threads:
            thread.start()

    def ready(self) -> None:
        """Wait until all workers are up; raises the first worker's `RewardInputError`."""
        errors = [error for future in self._started if (error := future.exception()) is not None]
        if errors:
            self.close()
            raise errors[0]

    def submit(self, call: Call) -> Future[CallResult]:
        future: Future[CallResult] = Future()
        self._calls.put((call, future))
        if self._broken is not None:
            self._refuse(self._broken)
        return future

    def close(self) -> None:
        """Drop waiting calls, end running ones (threads cannot be ended), stop the workers."""
        self._broken = self._broken or CancelledError()
        self._refuse(self._broken)
        for _ in self._threads:
            self._calls.put(None)
        for worker in self._workers:
            worker.abandon()
        for thread in self._threads:
            thread.join(timeout=10.0)
        self._on_close()

    def _serve(self, worker: Worker, started: Future[None]) -> None:
        try:
            worker.start()
        except BaseException as error:
            started.set_exception(error)
            if isinstance(error, RewardInputError):
                return
            raise
        started.set_result(None)
        mean_s = 1.0  # of a call, until some have been made
        while (first := self._calls.get()) is not None:
            calls, futures = zip(*(self._further(first, mean_s) if self._together else [first]), strict=True)
            try:
                crashed: list[tuple[Call, Future[CallResult], CallResult]] = []
                for call, future, answer in zip(calls, futures, worker.answer(calls), strict=True):
                    if answer.failure is not None and answer.failure.kind == "crashed":
                        crashed.append((call, future, answer))
                        continue
                    future.set_result(answer)
                    mean_s += 0.1 * (answer.seconds - mean_s)
                for call, future, answer in crashed:  # once more: something else may have ended the process
                    future.set_result(answer if worker.broken is not None else _only(worker.answer([call])))
            except BaseException as error:  # an internal error, not the function's: all waiting calls must fail
                self._broken = error
                for future in futures:
                    if not future.done():
                        future.set_exception(error)
                self._refuse(error)
                raise
            if worker.broken is not None and self._retire():
                break
        worker.close()

    def _retire(self) -> bool:
        """Return whether a broken worker may leave the calls to others. The last worker stays, and fails all calls."""
        with self._lock:
            if self._unbroken == 1:
                return False
            self._unbroken -= 1
            return True

    def _further(self, first: _Waiting, mean_s: float) -> list[_Waiting]:
        """Return ``first`` with further waiting calls, if calls are quick.

        A part of several calls costs one switch between threads and processes.
        """
        count = min(_MOST_AT_ONCE, int(_AT_ONCE_S / max(mean_s, 1e-9)))
        taken = [first]
        while len(taken) < count:
            try:
                item = self._calls.get_nowait()
            except queue.Empty:
                break
            if item is None:  # the end, for this thread or another
                self._calls.put(None)
                break
            taken.append(item)
        return taken

    def _refuse(self, error: BaseException) -> None:
        """Answer all that waits with ``error``."""
        while True:
            try:
                item = self._calls.get_nowait()
            except queue.Empty:
                return
            if item is not None:
                item[1].set_exception(error)


def _only(answers: Iterator[CallResult]) -> CallResult:
    (answer,) = answers
    return answer


class ThreadWorker:
    """Calls the function on a thread.

    No thread can be ended: a call past its deadline keeps running, and its result is ignored.
    """

    def __init__(self, function: RewardFunction, timeout_s: float | None) -> None:
        self._function = function
        self._timeout_s = timeout_s
        self._inner: _Inner | None = None
        self.broken: Failure | None = None

    def start(self) -> None: ...

    def close(self) -> None: ...

    def abandon(self) -> None: ...

    def answer(self, calls: Sequence[Call]) -> Iterator[CallResult]:
        return map(self._answer, calls)

    def _answer(self, call: Call) -> CallResult:
        if self._timeout_s is None or self._function.is_async:
            return self._function.call(call, self._timeout_s)
        self._inner = self._inner or _Inner(self._function)
        future = self._inner.submit(call)
        try:
            return future.result(self._timeout_s)
        except TimeoutError:
            stack, self._inner = self._inner.stack(), None
            return CallResult(failure=overdue(self._timeout_s, stack), seconds=self._timeout_s)


class _Inner:
    """The thread on which a limited call runs."""

    def __init__(self, function: RewardFunction) -> None:
        self._function = function
        self._calls: queue.SimpleQueue[tuple[Call, Future[CallResult]]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name="limited reward", daemon=True)
        self._thread.start()

    def submit(self, call: Call) -> Future[CallResult]:
        future: Future[CallResult] = Future()
        self._calls.put((call, future))
        return future

    def stack(self) -> str:
        """Return the stack of the function, while it runs."""
        frame = sys._current_frames().get(self._thread.ident or 0)
        return "".join(traceback.format_stack(frame)) if frame is not None else ""

    def _serve(self) -> None:
        while True:
            call, future = self._calls.get()
            future.set_result(self._function.call(call))


def thread_pool(function: RewardFunction, name: str, *, workers: int, timeout_s: float | None) -> WorkerPool:
    """Start threads that share one function."""
    set_up(function, name)
    pool = WorkerPool([ThreadWorker(function, timeout_s) for _ in range(workers)], on_close=function.close)
    pool.ready()
    return pool


def set_up(function: RewardFunction, name: str) -> None:
    """Call ``setup``; raise `RewardInputError` if it fails."""
    try:
        function.setup()
    except (Exception, SystemExit) as error:
        raise setup_error(name, raised(error)) from error


def setup_error(name: str, failure: Failure) -> RewardInputError:
    """Return the error for a worker whose setup failed."""
    detail = f": {failure.detail}" if failure.detail else ""
    trace = f"\n{failure.traceback}" if failure.traceback else ""
    return RewardInputError(f"reward '{name}' could not be set up; it {failure.what}{detail}{trace}")
