"""One process in a run folder at a time: real processes, one of them killed."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from rlkl.errors import InputError, RunInUseError
from rlkl.recipe import run_lock
from rlkl.recipe.run_lock import LOCK_FILE, RunLock, lock_run_dir

HOLD = """
import sys
from pathlib import Path
from rlkl.recipe.run_lock import lock_run_dir
lock = lock_run_dir(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
lock.release()
"""
TAKE = """
import sys
from pathlib import Path
from rlkl.errors import RunInUseError
from rlkl.recipe.run_lock import lock_run_dir
print("ready", flush=True)
sys.stdin.readline()
try:
    lock_run_dir(Path(sys.argv[1]))
    print("held", flush=True)
except RunInUseError:
    print("refused", flush=True)
sys.stdin.read()
"""
START = """
import sys
from pathlib import Path
from rlkl.errors import InputError
from rlkl.recipe import Recipe
from rlkl.recipe.run_dir import claim_run_dir
recipe = Recipe.model_validate({"run": %s, "model": {"path": "m"}, "data": {"source": "d"}})
print("ready", flush=True)
sys.stdin.readline()
try:
    print(claim_run_dir(recipe).run_dir.name, flush=True)
except InputError as error:
    print(f"{type(error).__name__}: {error}", flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def _no_lock_outlives_its_test(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Release every lock: the thread of one that is lost would report it half a minute later, in another test's log."""
    held: list[RunLock] = []
    make = RunLock.__init__

    def make_and_note(lock: RunLock, *arguments: Any) -> None:
        make(lock, *arguments)
        held.append(lock)

    monkeypatch.setattr(RunLock, "__init__", make_and_note)
    yield
    for lock in held:
        lock.release()


@contextmanager
def other_process(code: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def let_go(processes: list[subprocess.Popen[str]]) -> None:
    """Once all are ready, let them go on at the same time."""
    assert [said(process) for process in processes] == ["ready"] * len(processes)
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()


def change_owner(folder: Path, **values: object) -> None:
    path = folder / LOCK_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_a_held_folder_is_refused_with_host_and_process(tmp_path: Path):
    with other_process(HOLD, tmp_path) as holder:
        assert said(holder) == "held"
        with pytest.raises(RunInUseError) as caught:
            lock_run_dir(tmp_path)
        assert caught.value.exit_code == 2
        for part in (f"process {holder.pid} of user", f"on host {socket.gethostname()}", f"kill -INT {holder.pid}"):
            assert part in str(caught.value)

        holder.communicate("")  # it releases and ends
        assert list(tmp_path.iterdir()) == []
        lock_run_dir(tmp_path).release()


def test_one_process_does_not_lock_twice(tmp_path: Path):
    with lock_run_dir(tmp_path), pytest.raises(RunInUseError, match=f"process {os.getpid()} "):
        lock_run_dir(tmp_path)
    with lock_run_dir(tmp_path):
        pass


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    with other_process(HOLD, tmp_path) as holder:
        assert said(holder) == "held"
        holder.send_signal(signal.SIGKILL)
        while os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT) is None:
            pass
        assert Path(f"/proc/{holder.pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"  # nobody has reaped it
        with lock_run_dir(tmp_path):
            assert json.loads((tmp_path / LOCK_FILE).read_text())["pid"] == os.getpid()
        assert f"process {holder.pid} " in caplog.text
    assert not (tmp_path / LOCK_FILE).exists()


def test_a_later_process_with_the_same_id_is_another_one(tmp_path: Path):
    lock = lock_run_dir(tmp_path)
    change_owner(tmp_path, process_started=1)
    with lock_run_dir(tmp_path):
        lock.release()  # no longer its own: it must not remove the new owner's
        assert (tmp_path / LOCK_FILE).exists()


def test_of_many_that_take_over_at_once_one_succeeds(tmp_path: Path):
    lock_run_dir(tmp_path)
    change_owner(tmp_path, pid=2**22 + 1)  # beyond the largest process id
    with other_process(TAKE, tmp_path) as a, other_process(TAKE, tmp_path) as b, other_process(TAKE, tmp_path) as c:
        every = [a, b, c]
        let_go(every)
        assert sorted(said(process) for process in every) == ["held", "refused", "refused"]


@pytest.mark.parametrize(
    "elsewhere",
    [{"host": "gpu7"}, {"namespace": "pid:[1]"}, {"boot": "another", "namespace": "pid:[1]"}],
    ids=["another host", "another container", "another container, started again"],
)
def test_an_owner_out_of_sight_is_refused_with_the_way_out(tmp_path: Path, elsewhere: dict[str, str]):
    lock_run_dir(tmp_path)
    change_owner(tmp_path, pid=2**22 + 1, **elsewhere)
    os.utime(tmp_path / LOCK_FILE, (0, (tmp_path / LOCK_FILE).stat().st_mtime - 7200))
    host = elsewhere.get("host", socket.gethostname())
    with pytest.raises(RunInUseError) as caught:
        lock_run_dir(tmp_path)
    assert f"on host {host}" in str(caught.value)
    assert "last sign of life 720" in str(caught.value)
    assert f"remove {tmp_path / LOCK_FILE} and start again" in str(caught.value)

    (tmp_path / LOCK_FILE).unlink()
    lock_run_dir(tmp_path)


def test_a_machine_that_was_started_again_holds_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    lock_run_dir(tmp_path)
    namespace = json.loads((tmp_path / LOCK_FILE).read_text())["namespace"]
    monkeypatch.setattr(run_lock, "_FIRST_NAMESPACE", namespace)  # as on a machine itself, not in a container
    change_owner(tmp_path, boot="before")
    lock_run_dir(tmp_path)


def test_a_lock_file_without_an_owner_is_not_guessed_about(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(run_lock, "_TRIES", 3)
    (tmp_path / LOCK_FILE).touch()
    with pytest.raises(RunInUseError, match="remove that file"):
        lock_run_dir(tmp_path)


def test_a_folder_that_cannot_be_written_to_is_bad_input(tmp_path: Path):
    with pytest.raises(InputError, match=r"nowhere cannot be locked: .*run\.lock cannot be written"):
        lock_run_dir(tmp_path / "nowhere")


def test_a_living_owner_gives_signs_of_life_and_notices_a_lost_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(run_lock, "HEARTBEAT_S", 0.01)
    with lock_run_dir(tmp_path):
        os.utime(tmp_path / LOCK_FILE, (0, 0))
        wait_until(lambda: (tmp_path / LOCK_FILE).stat().st_mtime > 0)
        (tmp_path / LOCK_FILE).unlink()
        wait_until(lambda: "was removed or taken by another process" in caplog.text)


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.mark.parametrize("spelled_out", [False, True])
def test_two_starts_at_once_never_share_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spelled_out: bool):
    monkeypatch.chdir(tmp_path)
    code = START % ({"dir": "here"} if spelled_out else {"name": "try"})
    with other_process(code) as a, other_process(code) as b, other_process(code) as c:
        every = [a, b, c]
        let_go(every)
        answers = sorted(said(process) for process in every)
    if spelled_out:
        assert answers[2] == "here"
        assert [answer.partition(":")[0] for answer in answers[:2]] == ["RunInUseError", "RunInUseError"]
    else:
        assert answers == ["try", "try-2", "try-3"]
