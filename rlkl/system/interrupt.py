"""End on Ctrl-C or SIGTERM: a run after its current step, so that nothing computed is lost; all else at once."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

logger = logging.getLogger(__name__)


_terminated = threading.Event()
"""Set by a SIGTERM that was raised. While Ray waits, it replaces the error of a signal by a plain KeyboardInterrupt."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, raised as Python raises Ctrl-C."""

    def __init__(self) -> None:
        super().__init__()
        _terminated.set()


def signal_of(stopped: KeyboardInterrupt) -> int:
    """Return the signal that ended a command within `sigterm_raises`."""
    return signal.SIGTERM if isinstance(stopped, Terminated) or _terminated.is_set() else signal.SIGINT


@contextmanager
def sigterm_raises() -> Iterator[None]:
    """Let SIGTERM raise `Terminated` in the main thread, so that ``with`` blocks close what they hold."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _terminated.clear()
    previous = signal.signal(signal.SIGTERM, _raise)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _raise(number: int, frame: FrameType | None) -> None:
    raise Terminated


class StopRequest:
    """While entered, record the first SIGINT or SIGTERM in `signal_number`; interrupt at once on a second one.

    It can be entered again and keeps its signal: what is asked to stop is not started once more.
    """

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._at_once = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # Python delivers signals to the main thread only
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Let the first signal interrupt the block: it computes nothing that would be lost."""
        self._at_once = True
        try:
            yield
        finally:
            self._at_once = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        is_first, self.signal_number = self.signal_number is None, self.signal_number or number
        if self._at_once or not is_first:
            raise Terminated if number == signal.SIGTERM else KeyboardInterrupt
        logger.warning("%s: finishing this step and saving; once more to stop at once", signal.Signals(number).name)
