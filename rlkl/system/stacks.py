"""Stacks of running processes. A process writes its own when a signal asks it to, even if it hangs in native code."""

from __future__ import annotations

import faulthandler
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

_NAME = "rlkl-stacks"
_PAUSE_S = 0.02
_QUIET_PAUSES = 5
"""Pauses without a further byte after which stacks count as whole: on a busy machine a process writes them in parts."""
_MOST_BYTES = 200_000
_STATES = {
    "T": "It is stopped, as by SIGSTOP",
    "t": "A debugger has stopped it",
    "D": "It waits for a disk or a network file system and cannot be interrupted",
    "Z": "It has ended",
}
"""Explanation by the state that /proc gives."""


def answer_signal() -> None:
    """Let this process write the stacks of all its threads into memory at each SIGUSR1, for `stacks_of` to read.

    Processes that it forks do the same. Does nothing outside Linux.
    """
    if hasattr(os, "memfd_create"):
        faulthandler.register(signal.SIGUSR1, os.memfd_create(_NAME), all_threads=True)


def own_stacks() -> str:
    """Return the stacks of all threads of this process."""
    with tempfile.TemporaryFile("w+") as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        return _main_first(file.read())


def stacks_of(process: int, *, timeout_s: float = 2.0) -> str:
    """Return the stacks of a process on this machine, and of those it has started, or the reason why there are none.

    ``process``: its id. Asks those alone that have called `answer_signal`: SIGUSR1 would end any other.
    """
    parts = []
    for one in [process, *_started_by(process)]:
        file = _memory_of(one)
        if file is not None:
            parts.append(f"Process {one}:\n{_ask(one, file, timeout_s)}")
        elif one == process:
            parts.append(f"Process {one} cannot write its stacks. {_state(one)}.\n")
    return "\n".join(parts)


def ask(process: int, size: Callable[[], int], *, timeout_s: float) -> int:
    """Send a process SIGUSR1, and wait until it has written its stacks or the time is over.

    ``size``: returns the bytes of the file that it writes to. Returns those before the signal.
    """
    before = now = size()
    os.kill(process, signal.SIGUSR1)
    end, quiet = time.monotonic() + timeout_s, 0
    while time.monotonic() < end and quiet < _QUIET_PAUSES:
        time.sleep(_PAUSE_S)
        last, now = now, size()
        quiet = quiet + 1 if now == last > before else 0
    return before


def _ask(process: int, file: Path, timeout_s: float) -> str:
    """Return the stacks that a process writes to ``file``. Code in the process may have written any amount to it."""
    try:
        before = ask(process, lambda: file.stat().st_size, timeout_s=timeout_s)
        with file.open("rb") as written:
            written.seek(before)
            text = _main_first(written.read(_MOST_BYTES).decode(errors="replace"))
    except OSError as error:
        return f"It cannot be asked: {error.strerror}.\n"
    return text or f"It has written nothing within {timeout_s:g} s. {_state(process)}.\n"


def _main_first(text: str) -> str:
    """Reverse the order of the threads: faulthandler writes the main thread last."""
    return "".join(f"{thread}\n\n" for thread in reversed(text.strip().split("\n\n")) if thread)


def _memory_of(process: int) -> Path | None:
    """Return the file that a process writes its stacks to; None if it has not called `answer_signal`."""
    try:
        for descriptor in Path(f"/proc/{process}/fd").iterdir():
            if f"memfd:{_NAME}" in os.readlink(descriptor):
                return descriptor
    except OSError:  # it has ended, or belongs to another user
        pass
    return None


def _started_by(process: int) -> Iterator[int]:
    for file in Path(f"/proc/{process}/task").glob("*/children"):
        try:
            children = [int(word) for word in file.read_text().split()]
        except OSError:  # the thread has ended
            continue
        for child in children:
            yield child
            yield from _started_by(child)


def _state(process: int) -> str:
    try:
        letter = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return _STATES["Z"]
    return _STATES.get(letter, f"Its state is {letter}")
