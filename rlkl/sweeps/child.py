"""A child process of a sweep: one `rlkl` command, with all output in the log of its run.

The child holds a lock on its log, by a file descriptor that its own children do not inherit (Python closes it in them).
The kernel releases the lock when the child ends. So a sweep that starts again after a kill sees which children of the
earlier one still work, even those that have not claimed their run folder yet.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO


class Child:
    """A running `rlkl` command."""

    def __init__(self, words: Sequence[str], lock: BinaryIO, *, stdout: Path | None, env: Mapping[str, str]) -> None:
        """Start the command in a process group of its own, so that a Ctrl-C reaches it through the sweep only.

        ``lock``: the log, from `open_log`; it is closed here and stays open in the child. ``stdout``: a file of its own
        for the standard output; None: the log.
        """
        with ExitStack() as files:
            files.enter_context(lock)
            log = files.enter_context(Path(lock.name).open("ab"))
            log.write(f"$ rlkl {' '.join(words)}\n".encode())
            log.flush()
            self._process = subprocess.Popen(
                [sys.executable, "-m", "rlkl", *words],
                stdin=subprocess.DEVNULL,
                stdout=log if stdout is None else files.enter_context(stdout.open("wb")),
                stderr=log,
                pass_fds=[lock.fileno()],
                start_new_session=True,
                env={**os.environ, **env},
            )

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal; None while it runs."""
        return self._process.poll()

    def stop(self) -> None:
        """Ask it to finish its step, save, and end; a second time: to end at once."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)

    def wait(self) -> int:
        """Return the exit code when it has ended."""
        return self._process.wait()


def open_log(path: Path) -> BinaryIO | None:
    """Open a log to append to and lock it; None if a child of an earlier sweep still holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    log = path.open("ab")
    try:
        fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        log.close()
        return None
    except OSError:  # a file system without such locks: the lock of the run folder is left
        return log
    return log
