"""The lock of a run folder: one process writes into it at a time, on whatever machine.

The lock is the file ``run.lock`` with user, host and process id of its owner. It works on a network file system: the
file is created exclusively, and a lock whose process is dead is taken over by rewriting the file, not by removing it.
"""

from __future__ import annotations

import fcntl
import getpass
import json
import logging
import os
import secrets
import socket
import threading
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, TextIO

from rlkl.errors import InputError, RunInUseError

logger = logging.getLogger(__name__)

LOCK_FILE = "run.lock"
HEARTBEAT_S = 30.0
"""Seconds between two signs of life: the owner sets the file's modification time."""

_TRIES = 40
_PAUSE_S = 0.05
_FIRST_NAMESPACE = "pid:[4026531836]"
"""The process namespace of a Linux machine itself, outside any container."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """The process that holds a lock."""

    user: str
    host: str
    pid: int
    process_started: int
    """Clock ticks after the machine's start; distinguishes a process from a later one with the same id. 0: unknown."""
    boot: str
    """Random id that Linux draws at each start of the machine."""
    namespace: str
    """Process ids of two namespaces (containers) on one machine have nothing in common."""
    since: str
    token: str
    """Random; no two locks share it."""

    def __str__(self) -> str:
        return f"process {self.pid} of user {self.user} on host {self.host}, since {self.since}"


class RunLock:
    """A held lock. `release` it, or use it in a ``with`` statement."""

    def __init__(self, run_dir: Path, owner: Owner) -> None:
        self.run_dir = run_dir
        self._path = run_dir / LOCK_FILE
        self._owner = owner
        self._released = threading.Event()
        threading.Thread(target=self._beat, name="run lock", daemon=True).start()

    def __enter__(self) -> RunLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Remove the lock, unless another process took it. Later calls do nothing."""
        if not self._released.is_set():
            self._released.set()
            if self._is_ours():
                self._path.unlink(missing_ok=True)

    def _beat(self) -> None:
        while not self._released.wait(HEARTBEAT_S):
            if not self._is_ours():
                if not self._released.is_set():
                    logger.error(
                        "%s was removed or taken by another process while this run goes on; two processes may now "
                        "write into %s",
                        self._path,
                        self.run_dir,
                    )
                return
            try:
                os.utime(self._path)
            except OSError as error:  # a network file system that is away for a moment
                logger.debug("no sign of life in %s: %s", self._path, error)

    def _is_ours(self) -> bool:
        try:
            with self._path.open(encoding="utf-8") as file:
                return _read(file) == self._owner
        except FileNotFoundError:
            return False
        except OSError:  # unreadable for now
            return True


def lock_run_dir(run_dir: Path) -> RunLock:
    """Lock an existing folder; take over the lock of a process that is dead.

    Raises `RunInUseError`, which names the owner, if another process holds the lock or may hold it, and `InputError` if
    the folder cannot be written to.
    """
    run_dir = run_dir.absolute()
    path, owner = run_dir / LOCK_FILE, _this_process()
    try:
        for _ in range(_TRIES):
            if _create(path, owner) or _take_over(path, owner):
                return RunLock(run_dir, owner)
            time.sleep(_PAUSE_S)
    except OSError as error:
        raise InputError(f"the run folder {run_dir} cannot be locked: {path} cannot be written ({error})") from error
    raise RunInUseError(
        f"{path} cannot be read as the lock of a run. If no process uses {run_dir}, remove that file and start again"
    )


def live_owner(run_dir: Path) -> Owner | None:
    """Return the process that holds the lock of a run folder; None if nobody does, or if its process is dead.

    Raises `RunInUseError` if the owner cannot be seen from here, such as a process of another machine.
    """
    path = run_dir.absolute() / LOCK_FILE
    owner = _owner_in(path)
    if owner is None or (state := _state_of(owner)) == "dead":
        return None
    if state != "alive":
        raise _refusal(path, owner, state)
    return owner


def _create(path: Path, owner: Owner) -> bool:
    """Create the lock file; False if there is one."""
    try:
        file = path.open("x", encoding="utf-8")
    except FileExistsError:
        return False
    with file:
        _write(file, owner)
    return True


def _take_over(path: Path, owner: Owner) -> bool:
    """Make the lock of a dead process ours. False: ask again, because the file has just changed."""
    try:
        file = path.open("r+", encoding="utf-8")
    except FileNotFoundError:  # released meanwhile
        return False
    except PermissionError:
        raise _refusal(path, _owner_in(path), "another user's") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # another process is taking it over
            return False
        except OSError as error:  # a file system without such locks
            logger.debug("%s: no flock (%s)", path, error)
        if not _is_still_there(path, file):
            return False
        before = _read(file)
        if before is None:  # its owner is about to write it
            return False
        if (state := _state_of(before)) != "dead":
            raise _refusal(path, before, state)
        file.seek(0)
        file.truncate()
        _write(file, owner)
    logger.warning("%s: took over the lock of a process that is gone (%s)", path, before)
    return True


def _refusal(
    path: Path, owner: Owner | None, state: Literal["alive", "out of sight", "another user's"]
) -> RunInUseError:
    seconds = max(0, round(time.time() - path.stat().st_mtime)) if path.exists() else 0
    start = (
        f"{path.parent} is in use by {owner or 'another process'} (last sign of life {seconds} s ago; a live run gives "
        f"one every {HEARTBEAT_S:.0f} s). Two processes in one run folder would overwrite each other's records. "
    )
    if state == "alive" and owner is not None:
        return RunInUseError(f"{start}Wait until it ends, or stop it with: kill -INT {owner.pid}")
    return RunInUseError(
        f"{start}Whether it still runs cannot be seen from here. If it is really gone, remove {path} and start again"
    )


def _state_of(owner: Owner) -> Literal["alive", "dead", "out of sight"]:
    here = _this_process()
    if owner.host != here.host:
        return "out of sight"
    if owner.boot != here.boot:  # restarted since, unless it is a container that shares the name
        outside = owner.namespace == here.namespace == _FIRST_NAMESPACE
        return "dead" if outside else "out of sight"
    if owner.namespace != here.namespace:
        return "out of sight"
    return "alive" if _runs(owner.pid, owner.process_started) else "dead"


def _runs(pid: int, started: int) -> bool:
    """Return whether this process still runs, and not a later one with its id."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # there is such a process, of another user
        pass
    state, now_started = _process(pid)
    return state not in ("Z", "X") and (not started or not now_started or started == now_started)


def _process(pid: int) -> tuple[str, int]:
    """Return state letter and start time of a process; empty and 0 if the system does not show them."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return "", 0
    fields = text.rpartition(")")[2].split()  # the name before it may hold anything
    return fields[0], int(fields[19])


def _this_process() -> Owner:
    pid = os.getpid()
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a user id without a name, as in some containers
        user = str(os.getuid())
    return Owner(
        user=user,
        host=socket.gethostname(),
        pid=pid,
        process_started=_process(pid)[1],
        boot=_system_text("/proc/sys/kernel/random/boot_id"),
        namespace=_link("/proc/self/ns/pid"),
        since=datetime.now(UTC).isoformat(sep=" ", timespec="seconds"),
        token=secrets.token_hex(8),
    )


def _system_text(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def _write(file: TextIO, owner: Owner) -> None:
    file.write(json.dumps(asdict(owner), indent=2) + "\n")
    file.flush()
    os.fsync(file.fileno())


def _read(file: TextIO) -> Owner | None:
    """Read the owner; return None while the file is not written whole."""
    try:
        return Owner(**json.load(file))
    except (ValueError, TypeError):
        return None


def _owner_in(path: Path) -> Owner | None:
    try:
        with path.open(encoding="utf-8") as file:
            return _read(file)
    except OSError:
        return None


def _is_still_there(path: Path, file: TextIO) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
