"""Isolate an untrusted program from the machine; `Sandbox` starts one such process for each program.

The guard (this process) makes the walls, starts the program behind them, waits with a deadline, and ends whatever the
program has left. With ``isolation: namespaces`` the program's world has a process 1, ours, whose end is the end of all
processes in it. With ``isolation: process`` the guard adopts orphans and ends them one by one.

It reports through a pipe, one JSON object a line: ``problem`` (the walls could not be made), ``status`` (how the
program ended, as wait(2) says it), ``stopped`` (the guard ended it).
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from typing import Any, NoReturn

from reward_models.sandbox import kernel
from reward_models.sandbox.filter import refused_calls
from reward_models.sandbox.kernel import Mount
from reward_models.sandbox.leftovers import TooMuch, check_use, remove_tree

HOME = "/sandbox"
"""The program's folder, where it has a file system of its own."""
_NOBODY = 65534
_FIRST_PRIVATE_ID = 1_900_000_000
_DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
_SWEEP_S = 5.0
_LOOK_S = 0.02
"""Time between two looks at what the program has on the disk."""
_LOOK_SHARE = 5.0
"""A look may take this share of the time between two, at most: one fifth."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """The request of `Sandbox`."""

    isolation: str
    command: list[str]
    environment: dict[str, str]
    files: dict[str, str]
    """File name -> text, put into the program's folder."""
    readable: list[str]
    """Folders and files of this machine that the program may read and execute."""
    parent: int
    wall_s: float
    cpu_s: int
    memory_mb: int
    file_mb: int
    disk_mb: int
    processes: int


def main() -> None:
    """Run ``jail.py ORDER REPORT``: the numbers of two open files."""
    order_fd, report_fd = int(sys.argv[1]), int(sys.argv[2])
    with os.fdopen(order_fd) as text:
        order = Order(**json.load(text))
    watched = {signal.SIGCHLD, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, watched)
    os.set_inheritable(report_fd, False)
    try:
        kernel.die_with_parent(signal.SIGTERM)
        if os.getppid() != order.parent:
            return
        guard = _Guard(order, report_fd)
        guard.run()
    except OSError as error:
        _tell(report_fd, {"problem": str(error)})


class _Guard:
    def __init__(self, order: Order, report_fd: int) -> None:
        self._order = order
        self._report_fd = report_fd
        self._deadline = time.monotonic() + order.wall_s
        self._user = _private_id()
        self._namespaces = order.isolation == "namespaces"

    def run(self) -> None:
        folder = tempfile.mkdtemp(prefix="rlkl_sandbox_")
        try:
            if self._namespaces:
                self._run_in_namespaces(folder)
            else:
                self._run_as_process(folder)
        finally:
            remove_tree(folder)

    def _run_in_namespaces(self, folder: str) -> None:
        try:
            kernel.unshare(kernel.NEW_NAMESPACES)
        except PermissionError:
            self._unshare_as_ordinary_user(folder)
        first = os.fork()
        if first == 0:
            _or_tell(self._report_fd, lambda: self._be_process_one(folder))
        self._wait_for(first)
        os.kill(first, signal.SIGKILL)  # and with it all others of its namespace
        os.waitpid(first, 0)

    def _unshare_as_ordinary_user(self, folder: str) -> None:
        if os.geteuid() == 0:  # of a container, say; the number of root's processes cannot be limited
            os.chown(folder, self._user, self._user)
            self._change_user()
            kernel.own_its_proc_files()
            kernel.die_with_parent(signal.SIGTERM)  # which the change has undone
        outer_user, outer_group = os.geteuid(), os.getegid()
        kernel.unshare(kernel.NEW_NAMESPACES | kernel.NEW_USERS)
        self._user = _NOBODY
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", f"{_NOBODY} {outer_user} 1")
        _write("/proc/self/gid_map", f"{_NOBODY} {outer_group} 1")

    def _change_user(self) -> None:
        os.setgroups([])
        os.setresgid(self._user, self._user, self._user)
        os.setresuid(self._user, self._user, self._user)

    def _be_process_one(self, folder: str) -> None:
        kernel.die_with_parent(signal.SIGKILL)
        self._build_world(folder)
        program = self._start_program(HOME)
        while True:  # orphans end here too
            ended, status = os.wait()
            if ended == program:
                _tell(self._report_fd, {"status": status})
                return

    def _build_world(self, folder: str) -> None:
        """Build a root of its own: what may be read, a few devices, and one folder to write to.

        All is gone when it ends.
        """
        kernel.unshare(kernel.NEW_MOUNTS)  # here, because the guard keeps the old root to clean up in
        kernel.mount("none", "/", "", Mount.RECURSIVE | Mount.PRIVATE)
        no_tricks = Mount.NO_SET_UID | Mount.NO_DEVICES
        kernel.mount("tmpfs", folder, "tmpfs", no_tricks, "size=1m,nr_inodes=2000,mode=755")
        for path in self._order.readable:
            _show(path, folder)
        os.makedirs(folder + "/dev")
        for device in _DEVICES:
            _write(folder + device, "")
            kernel.mount(device, folder + device, "", Mount.BIND)
        os.makedirs(folder + HOME)
        megabytes = self._order.disk_mb
        owner = f"uid={self._user},gid={self._user},mode=700"
        kernel.mount("tmpfs", folder + HOME, "tmpfs", no_tricks, f"size={megabytes}m,nr_inodes=10000,{owner}")
        self._put_files(folder + HOME)
        kernel.mount("", folder, "", Mount.REMOUNT | Mount.BIND | Mount.READ_ONLY | no_tricks)
        kernel.change_root(folder)

    def _run_as_process(self, folder: str) -> None:
        kernel.adopt_orphans()
        self._put_files(folder)
        os.chmod(folder, 0o700)
        if os.geteuid() == 0:
            os.chown(folder, self._user, self._user)
        program = self._start_program(folder)
        try:
            self._wait_for(program, tell_status=True, watched=folder)
        finally:
            self._sweep()

    def _put_files(self, folder: str) -> None:
        for name, text in self._order.files.items():
            _write(os.path.join(folder, name), text)
            os.chmod(os.path.join(folder, name), 0o444)

    def _start_program(self, home: str) -> int:
        program = os.fork()
        if program == 0:
            _or_tell(self._report_fd, lambda: self._become_program(home))
        return program

    def _become_program(self, home: str) -> NoReturn:
        order = self._order
        os.setsid()
        os.chdir(home)
        for limit, number in {
            resource.RLIMIT_CPU: order.cpu_s,
            resource.RLIMIT_AS: order.memory_mb * 2**20,
            resource.RLIMIT_FSIZE: order.file_mb * 2**20,
            resource.RLIMIT_NPROC: order.processes,
            resource.RLIMIT_NOFILE: 64,
            resource.RLIMIT_CORE: 0,
            resource.RLIMIT_MEMLOCK: 0,
            resource.RLIMIT_MSGQUEUE: 0,
        }.items():
            resource.setrlimit(limit, (number, number))
        if os.geteuid() == 0:
            self._change_user()
        kernel.renounce_privileges()
        if not self._namespaces:
            kernel.restrict_files([*order.readable, "/dev/random", "/dev/urandom"], [home, "/dev/null", "/dev/zero"])
        kernel.install_filter(refused_calls(namespaces=self._namespaces))
        for number in (signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        environment = {**order.environment, "HOME": home, "TMPDIR": home}
        os.execve(order.command[0], order.command, environment)

    def _wait_for(self, child: int, *, tell_status: bool = False, watched: str | None = None) -> None:
        """Wait until ``child`` ends, the deadline passes, a signal asks to stop, or ``watched`` is too full."""
        pause = _LOOK_S
        while True:
            left = max(0.0, self._deadline - time.monotonic())
            received = signal.sigtimedwait({signal.SIGCHLD, signal.SIGTERM}, min(left, pause) if watched else left)
            if received is not None and received.si_signo == signal.SIGTERM:
                return _tell(self._report_fd, {"stopped": "asked"})
            if received is None and time.monotonic() >= self._deadline:
                return _tell(self._report_fd, {"stopped": "time"})
            info = os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if info is not None:
                if tell_status:
                    _tell(self._report_fd, {"status": os.waitpid(child, 0)[1]})
                return None
            if watched:
                started = time.monotonic()
                try:
                    check_use(watched, _descendants(), most_bytes=self._order.disk_mb * 2**20)
                except TooMuch:
                    return _tell(self._report_fd, {"stopped": "disk"})
                pause = max(_LOOK_S, _LOOK_SHARE * (time.monotonic() - started))

    def _sweep(self) -> None:
        """End every descendant. New ones may appear meanwhile, so look again until none is left."""
        until = time.monotonic() + _SWEEP_S
        while time.monotonic() < until:
            for process in _descendants():
                try:
                    os.kill(process, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            try:
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            except ChildProcessError:
                return
            time.sleep(0.002)
        _tell(self._report_fd, {"problem": "processes of the program are left that could not be ended"})


def _show(path: str, root: str) -> None:
    """Let a folder, file or link of this machine be seen under a new root, read-only."""
    target = root + path
    os.makedirs(os.path.dirname(target), exist_ok=True)
    if os.path.islink(path):
        os.symlink(os.readlink(path), target)
        return
    if os.path.isdir(path):
        os.makedirs(target, exist_ok=True)
    else:
        _write(target, "")
    kernel.bind_read_only(path, target)


def _private_id() -> int:
    """Return a user id of no account and no other sandbox of this machine; nobody's id if large ids are not mapped."""
    wanted = _FIRST_PRIVATE_ID + os.getpid()
    with open("/proc/self/uid_map") as lines:
        for line in lines:
            first, _, count = map(int, line.split())
            if first <= wanted < first + count:
                return wanted
    return _NOBODY


def _descendants() -> list[int]:
    parents: dict[int, int] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat") as file:
                    parents[int(name)] = int(file.read().rpartition(")")[2].split()[1])
            except OSError:  # ended meanwhile
                continue
    found: list[int] = []
    last = [os.getpid()]
    while last:
        last = [child for child, parent in parents.items() if parent in last]
        found += last
    return found


def _or_tell(report_fd: int, work: Any) -> NoReturn:
    """Do the work in a child, report why it failed if it did, and end the child."""
    try:
        work()
    except OSError as error:
        _tell(report_fd, {"problem": str(error)})
    finally:
        os._exit(0)


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


def _tell(report_fd: int, message: dict[str, Any]) -> None:
    try:
        os.write(report_fd, json.dumps(message).encode() + b"\n")
    except BrokenPipeError:  # whoever asked is gone; what is left to do is cleaning up
        return
