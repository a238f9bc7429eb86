"""The process that scores in mode ``process``. It makes one call at a time and ends with the process that began it.

Its memory is limited by RLIMIT_DATA: what it may write to, whether in use yet or not, counts from its start on. That
leaves alone what a CUDA context only reserves, and makes an allocation fail at once instead of the machine run short.
"""

from __future__ import annotations

import faulthandler
import os
import pickle
import resource
import signal
import socket
from dataclasses import replace

from rlkl.rewards.execution.call import CallResult, RewardFunction
from rlkl.rewards.execution.pool import WorkerSpec
from rlkl.rewards.execution.wire import MessageSocket, encode_answer, encode_start
from rlkl.rewards.function.result import Failure, raised
from rlkl.system.parent import end_with_parent


def main(connection: int, faults: int, parent: int) -> None:
    """Serve ``connection`` (a file descriptor) until its other end closes; write crashes to ``faults``.

    Programs that the reward starts, and processes that it forks, do not inherit the connection.
    """
    faulthandler.enable(faults)
    faulthandler.register(signal.SIGUSR1, faults)
    end_with_parent(parent)
    for descriptor in (connection, faults):
        os.set_inheritable(descriptor, False)
    link = MessageSocket(socket.socket(fileno=connection))
    os.register_at_fork(after_in_child=link.close)
    spec = pickle.loads(link.receive())
    assert isinstance(spec, WorkerSpec)
    if spec.memory_mb is not None:
        limit = spec.memory_mb * 2**20
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    failure, function = bring_up(spec)
    link.send(encode_start(failure))
    if function is None:
        return
    while True:
        try:
            first, calls = pickle.loads(link.receive())
        except EOFError:
            break
        for number, call in enumerate(calls, start=first):
            link.send(encode_answer(number, function.call(call)))
    function.close()


def bring_up(spec: WorkerSpec) -> tuple[Failure | None, RewardFunction | None]:
    """Build the function and set it up; return it, or the failure."""
    try:
        function = RewardFunction(spec.source.build())
        function.setup()
    except (Exception, SystemExit) as error:  # whatever the user's code raises is reported to the caller
        return _portable(raised(error)), None
    return None, function


def portable(answer: CallResult) -> CallResult:
    """Remove the exceptions from an answer: they may not survive the way to another process."""
    outcomes = tuple(_portable(o) if isinstance(o, Failure) else o for o in answer.outcomes)
    return replace(answer, outcomes=outcomes, failure=answer.failure and _portable(answer.failure))


def _portable(failure: Failure) -> Failure:
    return replace(failure, cause=None)
