"""Ways out of the sandbox for programs of models, beside those of tests/unit/reward_models/test_sandbox.py."""

from __future__ import annotations

import os
import signal
import subprocess
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.reward_models.sandboxes import make_sandbox


@pytest.fixture(params=["namespaces", "process"])
def isolation(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def bystander() -> Iterator[int]:
    """Another process, whose environment holds a secret."""
    process = subprocess.Popen(["sleep", "300"], env={"SECRET": "the secret"})
    yield process.pid
    assert process.poll() is None, "the program has ended it"
    process.kill()
    process.wait()


def printed(isolation: str, program: str, **limits: float) -> str:
    outcome = make_sandbox(isolation, **limits).run(["-c", textwrap.dedent(program)])
    assert outcome.exit_code == 0, outcome
    return outcome.stdout


def test_proc_tells_nothing_about_other_processes(isolation: str, bystander: int):
    program = f"""
        import os
        for name in ("environ", "cmdline", "maps", "mem", "root/etc/passwd", "cwd", "fd", "status"):
            path = f"/proc/{bystander}/{{name}}"
            for attempt in (lambda: open(path, "rb").read(99), lambda: os.listdir(path), lambda: os.readlink(path)):
                try:
                    print("READ", path, attempt())
                except OSError:
                    pass
        print("tried")
    """
    assert printed(isolation, program) == "tried\n"


def test_a_link_leads_nowhere(isolation: str, tmp_path: Path):
    secret = tmp_path / "secret"
    secret.write_text("the secret")
    secret.chmod(0o666)
    for folder in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        folder.chmod(0o755)
    program = f"""
        import os
        targets = [{str(secret)!r}, "/etc/shadow", "/proc/self/root{secret}", "/proc/1/root/etc"]
        for number, target in enumerate(targets):
            for link in (os.symlink, os.link):
                try:
                    link(target, f"{{link.__name__}}{{number}}")
                    print("READ", open(f"{{link.__name__}}{{number}}").read(9))
                except OSError:
                    pass
            try:
                open(f"symlink{{number}}", "w").write("changed")
            except OSError:
                pass
        print("tried")
    """
    assert printed(isolation, program) == "tried\n"
    assert secret.read_text() == "the secret"


def test_no_other_process_gets_a_signal_or_is_traced(isolation: str, bystander: int):
    """Attack by kill, tgkill, pidfd, ptrace and process_vm_readv, which reach into another process (x86-64)."""
    program = f"""
        import ctypes, os, signal
        libc = ctypes.CDLL(None, use_errno=True)
        buffer = ctypes.create_string_buffer(64)
        part = (ctypes.c_void_p * 2)(ctypes.addressof(buffer), 64)
        for target in ({bystander}, {os.getpid()}, 1):
            calls = {{
                "ptrace attach": lambda: libc.ptrace(16, target, 0, 0),
                "ptrace seize": lambda: libc.ptrace(0x4206, target, 0, 0),
                "pidfd_open": lambda: libc.syscall(434, target, 0),
                "process_vm_readv": lambda: libc.syscall(310, target, part, 1, part, 1, 0),
                "tgkill": lambda: libc.syscall(234, target, target, signal.SIGTERM),
            }}
            if target != 1 or {isolation == "process"}:  # process 1 of the program's own world is its guard
                for name, call in calls.items():
                    if call() >= 0 and name != "pidfd_open":
                        print("DID", name, target)
            for number in (signal.SIGKILL, signal.SIGSTOP, signal.SIGCONT, 0):
                try:
                    os.kill(target, number)
                    print("SENT", number, target)
                except OSError:
                    pass
        print("tried")
    """
    found = printed(isolation, program).splitlines()
    if isolation == "namespaces":  # process 1 is the guard, which the kernel protects from its own world
        found = [line for line in found if not (line.startswith("SENT") and line.endswith(" 1"))]
    assert found == ["tried"]
    assert Path(f"/proc/{bystander}/stat").read_text().split()[2] == "S", "it was not stopped"


def test_the_clock_and_the_name_of_the_machine_cannot_be_changed(isolation: str):
    before = time.time()
    program = """
        import socket, time
        for attempt in (lambda: time.clock_settime(time.CLOCK_REALTIME, 0), lambda: socket.sethostname("other")):
            try:
                attempt()
                print("DID")
            except OSError:
                pass
        print("tried")
    """
    assert printed(isolation, program) == "tried\n"
    assert time.time() >= before


def test_floods_of_both_outputs_at_once_end_and_leave_no_more_than_the_limit(isolation: str):
    program = """
        import os, threading
        def flood(number):
            while True:
                os.write(number, b"x" * 65536)
        for number in (1, 2):
            threading.Thread(target=flood, args=(number,)).start()
    """
    outcome = make_sandbox(isolation, output_kb=32).run(["-c", textwrap.dedent(program)])
    assert (outcome.stopped, outcome.exit_code) == ("output", -signal.SIGKILL)
    assert max(len(outcome.stdout), len(outcome.stderr)) == 32 * 1024


def test_terminal_input_cannot_be_typed(isolation: str):
    """TIOCSTI would type a command into the terminal of whoever started the run."""
    program = """
        import fcntl, os, termios
        for number in (0, 1, 2):
            try:
                fcntl.ioctl(number, termios.TIOCSTI, b"x")
                print("TYPED")
            except OSError:
                pass
        try:
            os.open("/dev/tty", os.O_RDWR)
            print("OPENED")
        except OSError:
            print("tried")
    """
    assert printed(isolation, program) == "tried\n"
