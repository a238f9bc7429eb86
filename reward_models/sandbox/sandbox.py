"""A sandbox for programs, seen from outside: limits in, outcome out."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any

from reward_models.sandbox.interpreter import find_interpreter
from rlkl.errors import RewardError, RewardInputError

_SYSTEM = (
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/nix/store",
    "/gnu/store",
    "/etc/ld.so.cache",
)
"""Folders that programs need to start: the machine's binaries and shared libraries."""
_ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "LANG": "C.UTF-8",
    "PYTHONHASHSEED": "0",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}
"""The program's whole environment, beside HOME and TMPDIR."""
_PYTHON_FLAGS = ("-P", "-s", "-B", "-X", "utf8")
_PACKAGE_FOLDER = str(Path(__file__).parents[1])
_CHECK_S = 60.0
"""Seconds that the trivial program may take, also on a busy machine."""
_GRACE_S = 30.0
"""Seconds beyond the wall limit that the guard may take, start and cleaning up included."""
_START_GUARD = """
import sys, types
package = types.ModuleType("reward_models")
package.__path__ = [sys.argv.pop(1)]
sandbox = types.ModuleType("reward_models.sandbox")
sandbox.__path__ = [package.__path__[0] + "/sandbox"]
sys.modules.update({"reward_models": package, "reward_models.sandbox": sandbox})
from reward_models.sandbox.jail import main
main()
"""
"""Loads the guard without the rest of its package, which is quicker."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The resources that one program may use."""

    wall_s: float = 10.0
    cpu_s: int = 10
    """For each of its processes."""
    memory_mb: int = 512
    """Address space of each of its processes."""
    file_mb: int = 16
    """The size of one file."""
    disk_mb: int = 64
    """All its files together. With namespaces they lie in memory and the kernel holds the limit. Otherwise the guard
    looks every few hundredths of a second, so a program may pass the limit by what it writes between two looks."""
    processes: int = 16
    """Processes and threads at the same time."""
    output_kb: int = 256
    """Standard output and standard error, each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The end of a program."""

    exit_code: int
    """Exit code of the program; minus the signal that ended it, as in `subprocess`; -9 if the sandbox stopped it."""
    stopped: str
    """``time``, ``output`` or ``disk`` if the sandbox stopped the program for that limit, else empty."""
    stdout: str
    stderr: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Sandbox:
    """Runs an untrusted Python program in processes of its own.

    ``isolation: namespaces`` gives it a file system of its own (the machine's programs and Python read-only, one folder
    in memory to write to, four devices, no /proc), no network, process numbers of its own, an unprivileged user, no
    capabilities, and a filter of system calls. ``isolation: process``, for kernels and containers that refuse
    namespaces, takes Landlock (Linux 6.2), the filter, and another user where the caller is root: the program then sees
    the machine's process numbers and shares its temporary file system.
    """

    limits: Limits = Limits()
    isolation: str = "namespaces"
    python: str | None = None
    """Another interpreter to run programs with."""
    packages: bool = False
    """Whether programs may import what this environment has installed, not only what its base interpreter has."""

    def check(self) -> None:
        """Run a trivial program.

        Raises:
            RewardInputError: this machine cannot keep programs apart this way; the message says what to do.
        """
        if sys.platform != "linux":
            raise RewardInputError(f"the sandbox for programs needs Linux; this is {sys.platform}")
        other = {"namespaces": "process", "process": "namespaces"}[self.isolation]
        try:
            patient = replace(self, limits=replace(self.limits, wall_s=max(_CHECK_S, self.limits.wall_s)))
            outcome = patient.run(["-c", "print(6 * 7)"])
            problem = "" if outcome.stdout == "42\n" else outcome.stopped or outcome.stderr.strip() or str(outcome)
        except RewardError as error:
            problem = str(error)
        if problem:
            raise RewardInputError(
                f"'isolation: {self.isolation}' does not work here with {self._python}: {problem}. "
                "Try an interpreter that every user may read ('python: /usr/bin/python3'), "
                f"'isolation: {other}' (reward_models/README.md says what each keeps apart), or another machine"
            )

    def run(self, arguments: Sequence[str], *, files: Mapping[str, str] | None = None, stdin: str = "") -> Outcome:
        """Run the interpreter with ``arguments`` in a folder that holds ``files``.

        Raises:
            RewardError: the sandbox itself failed. What the program does is an `Outcome`.
        """
        interpreter = find_interpreter(self._python, packages=self.packages)
        order = {
            "isolation": self.isolation,
            "command": [interpreter.command, *_PYTHON_FLAGS, *arguments],
            "environment": _ENVIRONMENT,
            "files": dict(files or {}),
            "readable": _outermost([*_SYSTEM, *interpreter.readable]),
            "parent": os.getpid(),
            **{name: value for name, value in asdict(self.limits).items() if name != "output_kb"},
        }
        report_read, report_write = os.pipe()
        with (
            _memory_file(json.dumps(order)) as order_file,
            _memory_file(stdin) as stdin_file,
            os.fdopen(report_read, "rb", buffering=0) as report,
        ):
            handed_on = (order_file.fileno(), report_write)
            try:
                guard = subprocess.Popen(
                    [sys.executable, "-I", "-S", "-c", _START_GUARD, _PACKAGE_FOLDER, *map(str, handed_on)],
                    stdin=stdin_file,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    pass_fds=handed_on,
                    env={},
                    start_new_session=True,
                )
            finally:
                os.close(report_write)
            return _Collector(guard, report, self.limits).outcome()

    @property
    def _python(self) -> str:
        return self.python or sys.executable


def _outermost(paths: Sequence[str]) -> list[str]:
    """Drop paths that do not exist and those below another one."""
    kept: list[str] = []
    for path in sorted(paths, key=len):
        if os.path.exists(path) and not any(path == other or path.startswith(other + "/") for other in kept):
            kept.append(path)
    return kept


class _Collector:
    """Reads what a guard and its program say until both have ended, or too much comes."""

    def __init__(self, guard: subprocess.Popen[bytes], report: IO[bytes], limits: Limits) -> None:
        self._guard = guard
        self._most = limits.output_kb * 1024
        self._deadline = time.monotonic() + limits.wall_s + _GRACE_S
        assert guard.stdout is not None
        assert guard.stderr is not None
        self._texts: dict[str, bytearray] = {"stdout": bytearray(), "stderr": bytearray(), "report": bytearray()}
        self._pipes: dict[str, IO[bytes]] = {"stdout": guard.stdout, "stderr": guard.stderr, "report": report}
        self._too_much = False

    def outcome(self) -> Outcome:
        try:
            self._collect()
        except BaseException:
            self._guard.terminate()  # interrupted: the guard cleans up by itself
            raise
        finally:
            self._guard.wait(timeout=None if self._guard.poll() is not None else _GRACE_S)
            for pipe in self._pipes.values():
                pipe.close()
        report: dict[str, Any] = {}
        for line in self._texts["report"].splitlines():
            report |= json.loads(line)
        if "problem" in report:
            raise RewardError(f"the sandbox could not be made or cleaned up: {report['problem']}")
        stopped = "output" if self._too_much else report.get("stopped", "")
        if not stopped and "status" not in report:
            said = self._texts["stderr"].decode(errors="replace").strip()
            raise RewardError(f"the sandbox's guard ended without a report; it said: {said or 'nothing'}")
        return Outcome(
            exit_code=-signal.SIGKILL if stopped else os.waitstatus_to_exitcode(report["status"]),
            stopped=stopped,
            stdout=self._texts["stdout"].decode(errors="replace"),
            stderr=self._texts["stderr"].decode(errors="replace"),
        )

    def _collect(self) -> None:
        with selectors.DefaultSelector() as selector:
            for name, pipe in self._pipes.items():
                selector.register(pipe, selectors.EVENT_READ, name)
            while selector.get_map():
                left = self._deadline - time.monotonic()
                if left <= 0:
                    self._guard.kill()
                    raise RewardError("the sandbox's guard did not end its program in time; is the machine overloaded?")
                for key, _ in selector.select(left):
                    part = os.read(key.fd, 65536)
                    if part:
                        self._take(key.data, part)
                    else:
                        selector.unregister(key.fileobj)

    def _take(self, name: str, part: bytes) -> None:
        text = self._texts[name]
        if name == "report":
            text += part
            return
        text += part[: self._most - len(text)]
        if not self._too_much and len(text) == self._most:
            self._too_much = True
            self._guard.terminate()


def _memory_file(text: str) -> IO[bytes]:
    """Open a file that lies in no folder; it holds ``text`` and is at its beginning."""
    file = os.fdopen(os.memfd_create("rlkl_sandbox"), "w+b", buffering=0)
    file.write(text.encode(errors="surrogatepass"))
    file.seek(0)
    return file
