"""Programs that try to get out, stay, or take more than their share."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from reward_models.sandbox import Outcome, Sandbox
from rlkl.errors import RewardError, RewardInputError
from tests.unit.reward_models.sandboxes import SYSTEM_PYTHON, make_sandbox

ROOT = Path(__file__).parents[3]


@pytest.fixture(params=["namespaces", "process"])
def isolation(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def secret_file(tmp_path: Path) -> Path:
    """Readable and writable for every user, so that only the sandbox stands between."""
    path = tmp_path / "secret.txt"
    path.write_text("the secret")
    path.chmod(0o666)
    for folder in tmp_path.parents:
        if os.access(folder, os.W_OK) and folder.is_relative_to("/tmp") and folder != Path("/tmp"):
            folder.chmod(folder.stat().st_mode | 0o755)
    tmp_path.chmod(0o777)
    return path


def run(sandbox: Sandbox, program: str) -> Outcome:
    return sandbox.run(["-c", textwrap.dedent(program)])


def processes_that_say(word: str) -> list[int]:
    """Process ids whose command line holds ``word``."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            try:
                command = (folder / "cmdline").read_bytes()
            except OSError:  # ended meanwhile
                continue
            if word.encode() in command:
                found.append(int(folder.name))
    return found


def test_it_runs_programs(isolation):
    sandbox = make_sandbox(isolation)
    sandbox.check()
    program = "import sys; print(sys.argv[1:], sys.stdin.read()); print('err', file=sys.stderr); sys.exit(3)"
    outcome = sandbox.run(["main.py", "x"], files={"main.py": program}, stdin="in")
    assert outcome == Outcome(exit_code=3, stopped="", stdout="['x'] in\n", stderr="err\n")
    crashed = run(sandbox, "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    assert crashed.exit_code == -signal.SIGSEGV


def test_environment_and_user(isolation, monkeypatch):
    monkeypatch.setenv("SECRET_KEY", "the secret")
    outcome = run(
        make_sandbox(isolation),
        """
        import os
        print(sorted(os.environ), os.getuid() != 0, os.geteuid() != 0, os.listdir("."))
        print(os.getgroups())
        """,
    )
    names = sorted(["HOME", "LANG", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "PATH", "PYTHONHASHSEED", "TMPDIR"])
    first, second = outcome.stdout.splitlines()
    assert first == f"{names} True True []"
    if os.geteuid() == 0:
        assert second == "[]"


def test_each_run_has_a_fresh_folder(isolation):
    sandbox = make_sandbox(isolation)
    program = "import os; print(os.listdir('.')); open('left', 'w').write('x')"
    assert [run(sandbox, program).stdout for _ in range(2)] == ["[]\n"] * 2


def test_no_network(isolation):
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.1)
        outcome = run(
            make_sandbox(isolation),
            f"""
            import socket
            for family, address in [(socket.AF_INET, ("127.0.0.1", {server.getsockname()[1]})), (socket.AF_UNIX, "x")]:
                try:
                    socket.socket(family, socket.SOCK_STREAM).connect(address)
                    print("connected")
                except OSError as error:
                    print(type(error).__name__)
            """,
        )
        with pytest.raises(TimeoutError):
            server.accept()
    assert outcome.stdout == "PermissionError\nPermissionError\n"


def test_no_reading_outside(isolation, secret_file):
    home = Path.home()
    outcome = run(
        make_sandbox(isolation),
        f"""
        import os
        paths = [{str(secret_file)!r}, {str(ROOT / "pyproject.toml")!r}, "/etc/passwd", "/proc/1/environ",
                 "/proc/{os.getpid()}/environ", "/proc/self/root/etc/passwd", "../../../../etc/passwd"]
        for path in paths:
            try:
                print("READ", path, open(path, "rb").read(10))
            except OSError as error:
                pass
        try:
            print("LISTED", [name for name in os.listdir({str(home)!r}) if name != ".pyenv"])
        except OSError:
            print("LISTED []")
        """,
    )
    assert outcome.stdout == "LISTED []\n", outcome.stderr


def test_no_reading_beside_an_interpreter_in_a_home_folder(isolation, tmp_path):
    """``python: ~/bin/python3`` is no reason to read the home folder."""
    home = tmp_path / "home"
    (home / "bin").mkdir(parents=True)
    (home / ".ssh").mkdir()
    (home / ".ssh" / "id").write_text("the secret")
    (home / "lib").mkdir()
    shutil.copy(os.path.realpath(SYSTEM_PYTHON), home / "bin" / "python3")
    for path in (home, *home.rglob("*"), tmp_path, tmp_path.parent, tmp_path.parent.parent):
        path.chmod(0o755)
    sandbox = replace(make_sandbox(isolation), python=str(home / "bin" / "python3"))
    outcome = run(
        sandbox,
        f"""
        import json, os  # the library is found
        for attempt in (lambda: open({str(home / ".ssh" / "id")!r}).read(), lambda: os.listdir({str(home / ".ssh")!r})):
            try:
                print("READ", attempt())
            except OSError:
                print("refused")
        """,
    )
    assert outcome.stdout == "refused\nrefused\n", outcome.stderr


def test_a_virtual_environments_interpreter_starts(isolation, tmp_path):
    """Named by its link, with and without the packages of its environment."""
    subprocess.run([SYSTEM_PYTHON, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    packages = next((tmp_path / "venv" / "lib").glob("python3*")) / "site-packages"
    (packages / "mine.py").write_text("name = 'mine'")
    for folder in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        folder.chmod(0o755)
    named = replace(make_sandbox(isolation), python=str(tmp_path / "venv" / "bin" / "python"))
    program = "try:\n    import mine\n    print(mine.name)\nexcept ImportError:\n    print('none')"
    assert run(replace(named, packages=True), program).stdout == "mine\n"
    assert run(named, program).stdout == "none\n"


def test_no_writing_outside(isolation, secret_file):
    folder = secret_file.parent
    outcome = run(
        make_sandbox(isolation),
        f"""
        import os
        for path in [{str(secret_file)!r}, {str(folder / "new")!r}, "/tmp/new", "/dev/shm/new", "/usr/new", "/new"]:
            for attempt in (lambda: open(path, "a").write("x"), lambda: os.truncate(path, 0), lambda: os.mkdir(path),
                            lambda: os.symlink("/etc", path), lambda: os.link("mine", path), lambda: os.chmod(path, 0)):
                try:
                    attempt()
                    print("DID", path)
                except OSError:
                    pass
        print("tried")
        """,
    )
    assert outcome.stdout == "tried\n", outcome.stderr
    assert secret_file.read_text() == "the secret"
    assert list(folder.iterdir()) == [secret_file]


def test_a_fork_bomb_ends_with_its_sandbox(isolation):
    word = secrets.token_hex(8)
    outcome = run(
        make_sandbox(isolation, wall_s=2, processes=20),
        f"""
        import os
        word = "{word}"
        while True:
            try:
                os.fork()
            except OSError:
                pass
        """,
    )
    assert outcome.stopped == "time"
    assert processes_that_say(word) == []


def test_the_number_of_processes_has_a_limit(isolation):
    outcome = run(
        make_sandbox(isolation, processes=20),
        """
        import os, time
        children = 0
        try:
            while children < 1000:
                if os.fork() == 0:
                    time.sleep(100)
                children += 1
        except OSError:
            print(children)
        """,
    )
    assert int(outcome.stdout) < 20


def test_an_endless_loop_is_stopped_by_the_clock_and_by_cpu_time(isolation):
    by_clock = run(make_sandbox(isolation, wall_s=1), "while True: pass")
    assert (by_clock.stopped, by_clock.exit_code) == ("time", -signal.SIGKILL)
    by_cpu = run(make_sandbox(isolation, wall_s=300, cpu_s=1), "while True: pass")
    assert (by_cpu.stopped, by_cpu.exit_code) == ("", -signal.SIGKILL)
    asleep = run(make_sandbox(isolation, wall_s=1), "import time; time.sleep(100)")
    assert asleep.stopped == "time"


def test_memory_files_and_output_have_limits(isolation):
    memory = run(make_sandbox(isolation), "x = bytearray(10**9)")
    assert "MemoryError" in memory.stderr
    file = run(make_sandbox(isolation), "open('big', 'wb').write(bytes(10**8))")
    assert file.exit_code != 0
    output = run(make_sandbox(isolation), "while True: print('x' * 1000)")
    assert output.stopped == "output"
    assert len(output.stdout) == 16 * 1024
    errors = run(make_sandbox(isolation), "import sys\nwhile True: print('x' * 1000, file=sys.stderr)")
    assert errors.stopped == "output"


def test_all_files_together_have_a_limit_in_memory():
    outcome = run(
        make_sandbox("namespaces", disk_mb=8, file_mb=4),
        """
        try:
            for number in range(100):
                open(f"{number}", "wb").write(bytes(3 * 10**6))
        except OSError as error:
            print(error.strerror)
        """,
    )
    assert outcome.stdout == "No space left on device\n"


ENDLESS_FILES = {
    "named": """
        for number in range(10**6):
            open(str(number), "wb").write(bytes(2 * 10**6))
            time.sleep(0.01)
    """,
    "deep": """
        for number in range(10**6):
            os.mkdir("d"); os.chdir("d")
            open("file", "wb").write(bytes(10**6))
            time.sleep(0.01)
    """,
    "unreadable": """
        os.mkdir("closed", 0o300)
        for number in range(10**6):
            open(f"closed/{number}", "wb").write(bytes(2 * 10**6))
            time.sleep(0.01)
    """,
    "deleted, still open": """
        kept = []
        for number in range(40):
            kept.append(open("file", "wb", buffering=0))
            kept[-1].write(bytes(2 * 10**6))
            os.unlink("file")
            time.sleep(0.01)
        time.sleep(100)
    """,
    "deleted, still mapped": """
        kept = []
        for number in range(40):
            with open("file", "w+b", buffering=0) as file:
                file.write(bytes(2 * 10**6))
                kept.append(mmap.mmap(file.fileno(), 2 * 10**6))
            os.unlink("file")
            time.sleep(0.01)
        time.sleep(100)
    """,
    "many": """
        for number in range(10**6):
            open(str(number), "w").close()
    """,
}


@pytest.mark.parametrize("kind", ENDLESS_FILES)
def test_all_files_together_have_a_limit_on_disk(kind):
    program = "import mmap, os, time\n" + textwrap.dedent(ENDLESS_FILES[kind])
    outcome = make_sandbox("process", disk_mb=20, wall_s=60).run(["-c", program])
    assert (outcome.stopped, outcome.exit_code) == ("disk", -signal.SIGKILL), outcome.stderr


def test_a_program_within_its_limit_of_files_is_left_alone():
    program = "open('a', 'wb').write(bytes(10**6)); import time; time.sleep(0.3); print('done')"
    assert run(make_sandbox("process", disk_mb=4), program).stdout == "done\n"


def test_open_files_cannot_be_hidden_in_messages():
    outcome = run(
        make_sandbox("process"),
        """
        import array, socket
        try:
            left, right = socket.socketpair()
            left.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [1]).tobytes())])
            print("sent")
        except OSError:
            print("refused")
        """,
    )
    assert outcome.stdout == "refused\n", outcome.stderr


def test_the_parent_cannot_be_killed(isolation):
    bystander = subprocess.Popen(["sleep", "100"])
    try:
        outcome = run(
            make_sandbox(isolation),
            f"""
            import os, signal
            for process in [{os.getpid()}, {bystander.pid}, os.getppid(), 1, -1]:
                try:
                    os.kill(process, signal.SIGKILL)
                except OSError:
                    pass
            print("tried")
            """,
        )
        assert bystander.poll() is None
        assert outcome.stdout == "tried\n" or outcome.exit_code == -signal.SIGKILL  # -1 includes itself
    finally:
        bystander.kill()
        bystander.wait()


def test_the_parent_cannot_be_slowed_down(isolation):
    affinity, priority = os.sched_getaffinity(0), os.getpriority(os.PRIO_PROCESS, 0)
    outcome = run(
        make_sandbox(isolation),
        f"""
        import os, resource
        for attempt in (lambda: os.sched_setaffinity({os.getpid()}, [0]),
                        lambda: os.setpriority(os.PRIO_PROCESS, {os.getpid()}, 19),
                        lambda: resource.prlimit({os.getpid()}, resource.RLIMIT_CPU, (1, 1))):
            try:
                attempt()
                print("DID")
            except OSError:
                pass
        """,
    )
    assert outcome.stdout == "", outcome.stderr
    assert (os.sched_getaffinity(0), os.getpriority(os.PRIO_PROCESS, 0)) == (affinity, priority)


def test_no_daemon_stays(isolation):
    word = secrets.token_hex(8)
    outcome = run(
        make_sandbox(isolation, wall_s=300),
        f"""
        import os, sys, time
        for _ in range(3):
            if os.fork() == 0:
                os.setsid()
                if os.fork() == 0:
                    os.execv(sys.executable, [sys.executable, "-c", "import time; time.sleep(1000)  # {word}"])
                os._exit(0)
            os.wait()
        print("left behind")
        """,
    )
    assert (outcome.exit_code, outcome.stopped, outcome.stdout) == (0, "", "left behind\n")
    assert processes_that_say(word) == []


def test_privileged_calls_are_refused(isolation):
    outcome = run(
        make_sandbox(isolation),
        """
        import ctypes
        libc = ctypes.CDLL(None, use_errno=True)
        calls = {
            "unshare": lambda: libc.unshare(0x10000000),
            "clone": lambda: libc.syscall(56, 0x10000011, 0, 0, 0, 0),
            "ptrace": lambda: libc.ptrace(16, 1, 0, 0),
            "mount": lambda: libc.mount(b"none", b"/tmp", b"tmpfs", 0, None),
            "chroot": lambda: libc.chroot(b"."),
            "setuid": lambda: libc.setuid(0),
            "shmget": lambda: libc.shmget(0, 4096, 0o1600),
        }
        print([name for name, call in calls.items() if call() >= 0])
        """,
    )
    assert outcome.stdout == "[]\n", outcome.stderr


def test_memory_that_no_limit_counts_is_refused(isolation):
    outcome = run(
        make_sandbox(isolation),
        """
        import ctypes, errno, os
        def attempt(make):
            file = make()
            if file < 0:
                raise OSError(ctypes.get_errno(), "refused")
            os.write(file, bytes(2**20)) if make is ordinary else os.ftruncate(file, 2**20)
        libc = ctypes.CDLL(None, use_errno=True)
        ordinary = lambda: os.memfd_create("hoard")
        for make in (ordinary, lambda: libc.syscall(447, 0)):
            try:
                attempt(make)
                print("taken")
            except OSError as error:
                print(errno.errorcode[error.errno])
        """,
    )
    assert outcome.stdout == "EPERM\nEPERM\n", outcome.stderr


def test_what_a_killed_parent_leaves(isolation):
    """The sandbox ends by itself when whoever scores is killed in the middle."""
    word = secrets.token_hex(8)
    script = f"""
from tests.unit.reward_models.sandboxes import make_sandbox
make_sandbox({isolation!r}, wall_s=300).run(["-c", "import time; time.sleep(300)  # {word}"])
"""
    parent = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    _wait_until(lambda: len(processes_that_say(f"time.sleep(300)  # {word}")) >= 2)
    parent.kill()
    parent.wait()
    _wait_until(lambda: processes_that_say(word) == [])


def _wait_until(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.05)


def test_nothing_is_left_in_the_temporary_folder(isolation, tmp_path, monkeypatch):
    tmp_path.chmod(0o777)
    for folder in tmp_path.parents:
        if folder.is_relative_to("/tmp") and folder != Path("/tmp"):
            folder.chmod(0o755)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    run(make_sandbox(isolation), "import os; os.makedirs('a/b'); open('a/b/c', 'w'); os.chmod('a', 0)")
    assert list(tmp_path.iterdir()) == []


def test_a_very_deep_folder_is_removed(tmp_path, monkeypatch):
    tmp_path.chmod(0o777)
    for folder in tmp_path.parents:
        if folder.is_relative_to("/tmp") and folder != Path("/tmp"):
            folder.chmod(0o755)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    outcome = run(
        make_sandbox("process", disk_mb=64),
        """
        import os
        for _ in range(1500):
            os.mkdir("d"); os.chdir("d")
        print("deep")
        """,
    )
    assert outcome.stdout == "deep\n", outcome
    assert list(tmp_path.iterdir()) == []


def test_several_threads_at_once(isolation):
    sandbox = make_sandbox(isolation, wall_s=300)
    outcomes: dict[int, Outcome] = {}
    threads = [
        threading.Thread(target=lambda n=n: outcomes.update({n: run(sandbox, f"print({n} * {n})")})) for n in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {n: outcome.stdout for n, outcome in outcomes.items()} == {n: f"{n * n}\n" for n in range(6)}


def test_installed_packages_are_seen_only_where_asked_for():
    program = "import sys, yaml; print(sys.prefix, yaml.__file__)"
    without = run(make_sandbox("namespaces"), program).stdout
    assert not without.startswith(sys.prefix + " ")
    limits = make_sandbox("namespaces", wall_s=300).limits
    assert run(Sandbox(packages=True, limits=limits), program).stdout == f"{sys.prefix} {yaml.__file__}\n"


@pytest.mark.parametrize("isolation", ["namespaces", "process"])
@pytest.mark.parametrize("who", ["nobody", "root without CAP_SYS_ADMIN"])
@pytest.mark.skipif(os.geteuid() != 0, reason="all other tests of this file are that of an ordinary user")
def test_the_caller_may_be_an_ordinary_user_or_a_containers_root(isolation, who):
    script = f"""
from reward_models.sandbox import Limits, Sandbox
sandbox = Sandbox(isolation={isolation!r}, limits=Limits(processes=20))
sandbox.check()
print(sandbox.run(["-c", '''
import os
print(os.getuid() != 0)
try:
    print(open("/etc/passwd").read())
except OSError:
    print("no reading")
try:
    for _ in range(30):
        if os.fork() == 0:
            __import__("time").sleep(100)
    print("no limit")
except OSError:
    print("a limit")
''']).stdout)
"""
    drop = {
        "nobody": ["--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all"],
        "root without CAP_SYS_ADMIN": ["--bounding-set=-sys_admin"],
    }[who]
    child = subprocess.run(
        ["setpriv", *drop, SYSTEM_PYTHON, "-c", script],
        cwd="/",
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert child.returncode == 0, child.stderr
    assert child.stdout.split("\n")[:3] == ["True", "no reading", "a limit"]


def test_a_machine_that_cannot_says_so(monkeypatch):
    with pytest.raises(
        RewardInputError, match=r"'isolation: namespaces' does not work here with /nowhere/python3.*Try"
    ):
        Sandbox(python="/nowhere/python3").check()
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(RewardInputError, match="needs Linux; this is darwin"):
        Sandbox().check()


def test_a_sandbox_that_fails_is_an_error_and_no_outcome():
    with pytest.raises(RewardError, match="could not be made"):
        Sandbox(python="/nowhere/python3").run(["-c", "print(1)"])
