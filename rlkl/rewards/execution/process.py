"""Worker processes: if a function hangs, crashes or uses up the memory there, only its own sample is lost."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import IO

from rlkl.rewards.execution.call import CallResult, overdue
from rlkl.rewards.execution.pool import CLOSED, WorkerSpec, setup_error
from rlkl.rewards.execution.wire import MOST_BYTES, MessageSocket, WireError, decode_answer, decode_start
from rlkl.rewards.function.arguments import Call
from rlkl.rewards.function.result import Failure, raised
from rlkl.system.stacks import ask

_START = (
    "import sys; sys.path[:] = {path!r}; from rlkl.rewards.execution.worker import main; "
    "main({child}, {faults}, {parent})"
)
_STACK_S = 5.0
"""Most seconds that a hanging process has to write its stack. One that gets time on a CPU needs a hundredth of them."""
_TRACE_CHARACTERS = 8000
_GONE = (EOFError, OSError)
"""Raised by a socket whose other end is closed."""


class ProcessWorker:
    """One process, replaced whenever a call ends it. It is a new interpreter: the caller's main module does not run.

    It is killed with SIGKILL, and so are all processes in its group.
    """

    def __init__(self, spec: WorkerSpec) -> None:
        self._spec = spec
        self._process: subprocess.Popen[bytes] | None = None
        self._calls: MessageSocket | None = None
        self._numbers = 0
        """Number of calls sent so far; each answer carries its call's number."""
        self._faults: IO[bytes] | None = None
        self._busy = False
        self._closing = False
        self._broken: Failure | None = None

    @property
    def broken(self) -> Failure | None:
        return self._broken

    def start(self) -> None:
        self._busy = True
        try:
            failure = self._start()
        finally:
            self._busy = False
        if failure is not None:
            raise setup_error(self._spec.name, failure)

    def answer(self, calls: Sequence[Call]) -> Iterator[CallResult]:
        """Send all calls at once and yield the results in order.

        If the process ends, send the unanswered calls to a new one, unless none starts or the worker is being closed.
        """
        left = list(calls)
        while left:
            failure = self._over() or self._send(left)
            if failure is not None and (over := self._over()):
                yield from [CallResult(failure=over)] * len(left)
                return
            if failure is not None and len(left) > 1:  # perhaps only one of them cannot be pickled
                for call in left:
                    yield from self.answer([call])
                return
            first = self._numbers - len(left)
            for place, call in enumerate(left):
                answer = self._receive(first + place, call) if failure is None else CallResult(failure=failure)
                yield answer
                if _ends(answer):
                    self._replace()
                    left = left[place + 1 :]
                    break
            else:
                left = []

    def close(self) -> None:
        """Give the process a few seconds to close its resources, then kill it."""
        if self._calls is not None:
            self._calls.close()
        if self._process is not None:
            _ended(self._process, timeout_s=5.0)
        self._kill()

    def abandon(self) -> None:
        self._closing = True
        process = self._process
        if process is not None and self._busy:
            _signal_group(process, signal.SIGKILL)

    def _over(self) -> Failure | None:
        """Return the reason for making no further calls, or None."""
        if self._closing:
            return CLOSED
        return self._broken

    def _send(self, calls: Sequence[Call]) -> Failure | None:
        """Send the calls, to a new process if this one has ended. Return the failure, or None."""
        try:
            body = pickle.dumps((self._numbers, calls))
        except (pickle.PicklingError, TypeError, AttributeError) as error:  # a value of the row cannot be pickled
            return raised(error)
        failure: Failure | None = None
        for _ in range(2):
            assert self._calls is not None
            try:
                self._calls.send(body, self._spec.timeout_s)
            except TimeoutError:
                failure = overdue(self._spec.timeout_s, self._stack())
            except _GONE:
                failure = self._crash()
            else:
                self._numbers += len(calls)
                return None
            self._replace()
            if self._over() is not None:
                break
        return failure

    def _receive(self, number: int, call: Call) -> CallResult:
        """Wait for the answer to call ``number``."""
        assert self._calls is not None
        start = time.perf_counter()
        self._busy = True
        try:
            if self._closing:  # `abandon` came too early to see that a call is under way
                raise EOFError
            body = self._calls.receive(self._spec.timeout_s, MOST_BYTES)
            return decode_answer(body, number=number, samples=len(call.tokens))
        except WireError as error:
            failure = _not_an_answer(error)
        except TimeoutError:
            failure = overdue(self._spec.timeout_s, self._stack())
        except _GONE:
            failure = self._crash()
        finally:
            self._busy = False
        return CallResult(failure=failure, seconds=time.perf_counter() - start)

    def _start(self) -> Failure | None:
        """Start a process. Return the failure, or None."""
        self._faults = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        own, child = socket.socketpair()
        self._calls = MessageSocket(own)
        with child:
            code = _START.format(path=sys.path, child=child.fileno(), faults=self._faults.fileno(), parent=os.getpid())
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-c", code],
                    pass_fds=(child.fileno(), self._faults.fileno()),
                    stdin=subprocess.DEVNULL,
                    stdout=2,  # what a reward prints must not get between the lines of rlkl's own output
                    start_new_session=True,
                )
            except OSError as error:  # no process or no memory left on this machine
                self._kill()
                return Failure(kind="crashed", what="found no room for its process", detail=str(error))
        try:
            if self._closing:  # `abandon` came too early to see the process
                raise EOFError
            self._calls.send(pickle.dumps(self._spec), self._spec.start_timeout_s)
            failure = decode_start(self._calls.receive(self._spec.start_timeout_s, MOST_BYTES))
        except WireError as error:
            failure = _not_an_answer(error)
        except TimeoutError:
            failure = overdue(self._spec.start_timeout_s, self._stack(), key="cluster.start_timeout_s")
        except _GONE:
            failure = self._crash()
        if failure is not None:
            self._kill()
        return failure

    def _replace(self) -> None:
        """Start a new process. If that fails, mark the worker as broken and do not retry: each try may take minutes."""
        self._kill()
        if self._closing:
            return
        self._busy = True
        try:
            self._broken = self._start()
        finally:
            self._busy = False

    def _kill(self) -> None:
        if self._process is not None:
            _signal_group(self._process, signal.SIGKILL)
            self._process.wait()
        for handle in (self._calls, self._faults):
            if handle is not None:
                handle.close()
        self._process = self._calls = self._faults = None

    def _stack(self) -> str:
        """Return the stack of a hanging process, if it can still write one."""
        assert self._process is not None
        assert self._faults is not None
        file = self._faults.fileno()
        with contextlib.suppress(ProcessLookupError):
            ask(self._process.pid, lambda: os.fstat(file).st_size, timeout_s=_STACK_S)
        return self._written()

    def _crash(self) -> Failure:
        """Describe the end of a process that ended by itself."""
        assert self._process is not None
        if self._closing:
            return CLOSED
        if not _ended(self._process, timeout_s=5.0):
            return Failure(kind="crashed", what="closed its connection", traceback=self._written())
        _signal_group(self._process, signal.SIGKILL)
        code = self._process.wait()
        if code >= 0:
            return Failure(kind="crashed", what=f"ended its process with exit code {code}", traceback=self._written())
        name = signal.Signals(-code).name
        limit = self._spec.memory_mb
        hint = f"memory_mb is {limit}" if limit else "the machine may be out of memory" if name == "SIGKILL" else ""
        return Failure(kind="crashed", what=f"crashed with {name}", detail=hint, traceback=self._written())

    def _written(self) -> str:
        """Return the end of the process's fault log. Code in the process may have written any amount to it."""
        assert self._faults is not None
        size = os.fstat(self._faults.fileno()).st_size
        self._faults.seek(max(size - _TRACE_CHARACTERS, 0))
        return self._faults.read(_TRACE_CHARACTERS).decode(errors="replace")


def _not_an_answer(error: WireError) -> Failure:
    return Failure(kind="crashed", what="wrote to rlkl's connection, and not an answer", detail=str(error))


def _ends(answer: CallResult) -> bool:
    """Return whether the process is gone, or cannot be trusted any more."""
    outcomes = (answer.failure, *answer.outcomes)
    return any(isinstance(o, Failure) and o.kind in ("timeout", "crashed", "memory") for o in outcomes)


def _ended(process: subprocess.Popen[bytes], *, timeout_s: float) -> bool:
    """Return whether the process ends in time. It is not reaped, so its id still names its group."""
    end = time.monotonic() + timeout_s
    with contextlib.suppress(ChildProcessError):  # it is gone for good
        while os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
            if time.monotonic() > end:
                return False
            time.sleep(0.005)
    return True


def _signal_group(process: subprocess.Popen[bytes], number: int) -> None:
    """Signal a process's group. A process that was not reaped keeps its id, so the signal reaches no other process."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
