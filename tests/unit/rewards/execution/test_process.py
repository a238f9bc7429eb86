"""Real workers, and functions that hang, crash, eat memory, or answer nonsense: each costs its own sample only."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rlkl.errors import RewardError, RewardInputError
from rlkl.rewards import RewardSet
from rlkl.rewards.execution.pool import WorkerPool
from rlkl.rewards.execution.process import ProcessWorker
from rlkl.rewards.function.arguments import Call
from rlkl.rewards.scoring.reward_set import _worker_spec
from tests.unit.rewards.score_texts import STATE, completion, loaded, prompts, score, values

REWARDS = '''
import ctypes, math, os, time

def misbehave(text):
    """A number for a healthy text; whatever the others ask for."""
    if text == "hang":
        while True:
            pass
    if text == "sleep":
        time.sleep(3600)
    if text == "segv":
        ctypes.string_at(0)
    if text == "exit":
        os._exit(3)
    if text == "oom":
        return float(len(bytearray(8 << 30)))
    if text == "raise":
        raise KeyError("no such thing")
    if text == "leave":
        raise SystemExit(1)
    return {"type": "high", "nan": math.nan, "inf": -math.inf, "abstain": None}.get(text, float(len(text)))

def sample(completion):
    return misbehave(completion)

def batch(completions):
    return [misbehave(text) for text in completions if text != "short"]

def group(group):
    return [misbehave(text) for text in group.completions if text != "short"]

async def waiting(completion):
    import asyncio
    if completion == "hang":
        await asyncio.sleep(3600)
    return misbehave(completion)

def process_id(completion):
    return os.getpid()

class Holding:
    def __init__(self, *, file, memory_mb=0):
        self.file, self.memory_mb = file, memory_mb
    def setup(self):
        self.held = bytearray(self.memory_mb << 20)
        self.write("setup")
    def __call__(self, completion):
        return misbehave(completion)
    def close(self):
        self.write("close")
    def write(self, word):
        with open(self.file, "a") as file:
            file.write(f"{word} {os.getpid()}\\n")
'''


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "own_rewards.py"
    path.write_text(REWARDS)
    return str(path)


def drops(file: str, name: str, mode: str = "process", **more: Any) -> dict[str, Any]:
    section = {"function": f"{file}:{name}", "name": "r", "mode": mode, "on_error": "drop_sample"}
    return section | {"max_failed_fraction": 1.0} | more


def kinds(done: Any) -> list[tuple[int, str]]:
    return [(failure.draw * len("ab") + failure.sample_index, failure.kind) for failure in done.failures]


PROCESS = {"timeout_s": 3.0, "memory_mb": 256}


@pytest.mark.parametrize(
    ("bad", "kind"),
    [
        ("hang", "timeout"),
        ("segv", "crashed"),
        ("exit", "crashed"),
        ("oom", "memory"),
        ("raise", "raised"),
        ("leave", "raised"),
        ("type", "returned"),
        ("nan", "returned"),
        ("inf", "returned"),
    ],
)
@pytest.mark.parametrize("unit", ["sample", "batch"])
def test_in_a_process_only_the_bad_sample_is_lost(file: str, unit: str, bad: str, kind: str):
    with loaded(drops(file, unit, **PROCESS)) as rewards:
        done = score(rewards, ["a", "bb"], ["ccc", bad], ["dddd", "e"])
        assert values(done) == [1.0, 2.0, 3.0, None, 4.0, 1.0]
        assert kinds(done) == [(3, kind)]
        assert done.failures[0].completion == bad
        assert values(score(rewards, ["a", "bb"])) == [1.0, 2.0]


def test_a_batch_of_the_wrong_length_costs_the_samples_that_make_it_so(file: str):
    for mode in ("inline", "process"):
        with loaded(drops(file, "batch", mode)) as rewards:
            done = score(rewards, ["a", "short"], ["ccc", "dd"])
        assert values(done) == [1.0, None, 3.0, 2.0]
        assert "one reward for each of 1 samples, got 0" in done.failures[0].error


def test_a_group_call_that_fails_costs_its_group(file: str):
    for mode in ("inline", "process"):
        with loaded(drops(file, "group", mode)) as rewards:
            done = score(rewards, ["a", "bb"], ["ccc", "short"], ["d", "nan"], ["e", "raise"])
        assert values(done) == [1.0, 2.0, None, None, 1.0, None, None, None]
        assert [failure.kind for failure in done.failures] == ["returned"] * 3 + ["raised"] * 2


@pytest.mark.parametrize("mode", ["inline", "thread", "process"])
def test_whatever_is_no_reward_is_no_zero_in_any_mode(file: str, mode: str):
    with loaded(drops(file, "sample", mode)) as rewards:
        done = score(rewards, ["a", "raise"], ["type", "nan"], ["abstain", ""])
    assert values(done) == [1.0, None, None, None, None, 0.0]
    assert kinds(done) == [(1, "raised"), (2, "returned"), (3, "returned")]  # an abstention is no failure
    assert "KeyError" in done.failures[0].error
    assert "no such thing" in done.failures[0].traceback


def test_a_hang_is_told_with_the_place_where_it_hung(file: str):
    with loaded(drops(file, "sample", timeout_s=2.0)) as rewards:
        start = time.monotonic()
        done = score(rewards, ["hang", "a"], ["sleep", "b"])
        assert time.monotonic() - start < 60
    assert values(done) == [None, 1.0, None, 1.0]
    assert "took longer than timeout_s = 2" in done.failures[0].error
    assert 'own_rewards.py", line' in done.failures[0].traceback
    assert "misbehave" in done.failures[1].traceback


def test_a_crash_is_told_with_its_signal_and_the_place(file: str):
    with loaded(drops(file, "sample", memory_mb=256)) as rewards:
        done = score(rewards, ["segv", "exit"])
    assert "crashed with SIGSEGV" in done.failures[0].error
    assert "misbehave" in done.failures[0].traceback
    assert "exit code 3" in done.failures[1].error


def test_hangs_do_not_hold_up_the_other_workers(file: str):
    with loaded(drops(file, "sample", workers=3, timeout_s=15.0)) as rewards:
        rewards.start()
        start = time.monotonic()
        done = score(rewards, ["hang", "hang"], *[["a", "b"]] * 20)
        assert time.monotonic() - start < 2 * 15.0  # side by side, not one after the other, and time to restart
    assert values(done) == [None, None, *[1.0] * 40]


def test_a_thread_that_hangs_is_left_to_itself(file: str):
    with loaded(drops(file, "sample", "thread", timeout_s=2.0)) as rewards:
        done = score(rewards, ["sleep", "a"])
    assert values(done) == [None, 1.0]
    assert done.failures[0].kind == "timeout"
    assert "misbehave" in done.failures[0].traceback


@pytest.mark.parametrize("mode", ["inline", "thread", "process"])
def test_an_async_function_runs_in_any_mode(file: str, mode: str):
    with loaded(drops(file, "waiting", mode)) as rewards:
        assert values(score(rewards, ["a", "bb"], ["raise", ""])) == [1.0, 2.0, None, 0.0]


def test_async_calls_of_threads_overlap_and_are_cancelled_when_overdue(tmp_path: Path):
    path = tmp_path / "own.py"
    path.write_text(
        "import asyncio\nrunning = most = 0\n"
        "async def together(completion):\n    global running, most\n    running += 1\n    most = max(most, running)\n"
        "    try:\n        while most < 4 or completion == 'hang':\n            await asyncio.sleep(0.01)\n"
        "        await asyncio.sleep(0.1)\n"
        "    finally:\n        running -= 1\n"
        "    return most\n"
        "def left(completion):\n    return running\n"
    )
    section = {"mode": "thread", "workers": 4, "timeout_s": 5.0, "on_error": "drop_sample", "max_failed_fraction": 1.0}
    with loaded({"function": f"{path}:together"} | section, {"function": f"{path}:left", "role": "monitor"}) as rewards:
        done = score(rewards, ["hang", "b", "c", "d"])
    assert values(done) == [None, 4.0, 4.0, 4.0]
    assert [scored.monitors["left"] for scored in done.scored] == [0.0] * 4


def test_setup_and_close_run_once_where_the_scores_are_made(file: str, tmp_path: Path):
    for mode in ("inline", "thread", "process"):
        log = tmp_path / mode
        workers = {} if mode == "inline" else {"workers": 2}
        with loaded(drops(file, "Holding", mode, settings={"file": str(log)}, **workers)) as rewards:
            assert values(score(rewards, ["a", "bb"])) == [1.0, 2.0]
        lines = [line.split() for line in log.read_text().splitlines()]
        count = 2 if mode == "process" else 1
        assert [word for word, _ in lines].count("setup") == [word for word, _ in lines].count("close") == count
        assert (str(os.getpid()) in {process for _, process in lines}) == (mode != "process")


def test_memory_held_since_setup_counts(file: str, tmp_path: Path):
    settings = {"file": str(tmp_path / "log"), "memory_mb": 400}
    with (
        loaded(drops(file, "Holding", settings=settings, memory_mb=300)) as rewards,
        pytest.raises(RewardInputError, match=r"reward 'r' could not be set up; it raised MemoryError"),
    ):
        rewards.start()


def test_a_setup_that_fails_says_what_and_where(tmp_path: Path):
    path = tmp_path / "own.py"
    path.write_text(
        "class Judge:\n    def setup(self):\n        raise OSError('no model here')\n    def __call__(self): ...\n"
    )
    for mode in ("inline", "thread", "process"):
        with (
            loaded({"function": f"{path}:Judge", "mode": mode}) as rewards,
            pytest.raises(RewardInputError, match=r"'Judge' could not be set up; it raised OSError: no model here"),
        ):
            rewards.start()


def test_worker_processes_are_gone_once_closed_also_those_that_hang(file: str):
    with loaded(drops(file, "process_id", workers=2)) as rewards:
        pids = {int(value) for value in values(score(rewards, *[["a", "b"]] * 30)) if value}
    assert os.getpid() not in pids
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]

    with loaded(drops(file, "sample", timeout_s=3600.0)) as rewards:
        scoring = _begin(rewards, "hang")
        start = time.monotonic()
    assert time.monotonic() - start < 30
    del scoring


def _begin(rewards: RewardSet, text: str) -> Any:
    scoring = rewards.open_round(prompts(1), samples=1, state=STATE, draws=[0])
    scoring.add(0, completion(text))
    time.sleep(0.5)
    return scoring


def test_an_edit_during_the_run_changes_nothing(file: str):
    with loaded(drops(file, "sample", timeout_s=1.0)) as rewards:
        rewards.start()
        Path(file).write_text("def sample(completion):\n    return 99\n")
        assert values(score(rewards, ["exit", "a"])) == [None, 1.0]  # the worker was replaced in between


def test_failures_are_kept_with_text_and_traceback(file: str, tmp_path: Path):
    with loaded(drops(file, "sample", "inline"), folder=tmp_path / "run") as rewards:
        score(rewards, ["a", "raise"], ["nan", "b"])
    lines = (tmp_path / "run" / "failures" / "step_000003.jsonl").read_text().splitlines()
    first, second = map(json.loads, lines)
    assert first["error"] == "raised KeyError: 'no such thing'"
    assert 'raise KeyError("no such thing")' in first["traceback"]
    assert {key: second[key] for key in ("step", "reward", "kind", "prompt_id", "draw", "sample_index")} == {
        "step": 3,
        "reward": "r",
        "kind": "returned",
        "prompt_id": "row-1",
        "draw": 1,
        "sample_index": 0,
    }
    assert (second["prompt"], second["completion"], second["on_error"]) == ("1+1=", "nan", "drop_sample")


def test_a_resumed_run_forgets_the_failures_of_the_steps_that_it_does_again(file: str, tmp_path: Path):
    for first_step, kept in ((0, True), (3, True), (2, False)):
        with loaded(drops(file, "sample", "inline"), folder=tmp_path, first_step=first_step) as rewards:
            if not first_step:
                score(rewards, ["a", "raise"])
        assert (tmp_path / "failures" / "step_000003.jsonl").exists() == kept


def test_too_many_failures_stop_the_run_and_are_named(file: str, tmp_path: Path):
    section = drops(file, "sample", "inline", max_failed_fraction=0.25)
    with loaded(section, folder=tmp_path) as rewards:
        assert values(score(rewards, ["a", "b"], ["c", "raise"])) == [1.0, 1.0, 1.0, None]
        with pytest.raises(
            RewardError, match=r"'r' failed on 2 of 4 samples \(returned 1, raised 1\), more than"
        ) as told:
            score(rewards, ["a", "b"], ["nan", "raise"])
    assert "step_000003.jsonl" in str(told.value)
    assert "on prompt row-1, completion 'nan'" in str(told.value)
    assert len((tmp_path / "failures" / "step_000003.jsonl").read_text().splitlines()) == 3


def test_under_raise_the_sample_is_named_and_kept(file: str, tmp_path: Path):
    section = {"function": f"{file}:sample", "mode": "process"}
    with (
        loaded(section, folder=tmp_path) as rewards,
        pytest.raises(
            RewardError, match=r"'sample' raised KeyError on prompt row-0, completion 'raise': 'no such thing'"
        ),
    ):
        score(rewards, ["a", "raise"])
    assert (tmp_path / "failures" / "step_000003.jsonl").exists()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_nobody_waits_for_a_pool_whose_worker_broke():
    class Broken:
        broken = None

        def start(self): ...

        def answer(self, calls):
            time.sleep(0.2)
            raise ZeroDivisionError

        def close(self): ...

        def abandon(self): ...

    call = Call(unit="sample", arguments={}, tokens=(1,))
    pool = WorkerPool([Broken()])
    waiting = [pool.submit(call) for _ in range(3)]
    for future in waiting:
        with pytest.raises(ZeroDivisionError):
            future.result(timeout=60)
    with pytest.raises(ZeroDivisionError):
        pool.submit(call).result(timeout=60)
    pool.close()


def test_a_worker_needs_little_memory_of_its_own(file: str):
    with loaded(drops(file, "sample", memory_mb=64)) as rewards:
        assert values(score(rewards, ["a", "bb"])) == [1.0, 2.0]


def test_a_row_that_cannot_travel_costs_its_own_sample(tmp_path: Path):
    path = tmp_path / "own.py"
    path.write_text("def called(completion, thing):\n    return float(thing)\n")
    rows = [replace(prompt, columns={"thing": n}) for n, prompt in enumerate(prompts(40))]
    rows[7] = replace(rows[7], columns={"thing": lambda: None})
    with loaded(drops(str(path), "called")) as rewards:
        scoring = rewards.open_round(rows, samples=1, state=STATE, draws=range(40))
        for index in range(40):
            scoring.add(index, completion("x"))
        done = scoring.finish()
    assert values(done) == [None if n == 7 else float(n) for n in range(40)]
    assert "pickle" in done.failures[0].error


def test_a_worker_that_ended_in_between_costs_nothing(tmp_path: Path):
    path = tmp_path / "own.py"
    path.write_text(
        "import os, pathlib, threading, time\n"
        f"here = pathlib.Path({str(tmp_path)!r})\n"
        "def end_when_told():\n"
        "    while not (here / 'told').exists():\n        time.sleep(0.01)\n"
        "    os._exit(1)\n"
        "def ends_later(completion):\n"
        "    if completion == 'last':\n"
        "        (here / 'process').write_text(str(os.getpid()))\n"
        "        threading.Thread(target=end_when_told, daemon=True).start()\n"
        "    return 1.0\n"
    )
    with loaded(drops(str(path), "ends_later")) as rewards:
        assert values(score(rewards, ["last", "a"])) == [1.0, 1.0]
        (tmp_path / "told").touch()
        assert _until(lambda: not _alive(int((tmp_path / "process").read_text())))
        assert values(score(rewards, ["a", "b"])) == [1.0, 1.0]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_process_that_something_else_ends_costs_no_sample(tmp_path: Path, workers: int):
    """As the kernel does when memory is short. The call that it was in is made once more, in a new process."""
    path = tmp_path / "own.py"
    path.write_text(
        "import os, pathlib, signal\n"
        f"marker = pathlib.Path({str(tmp_path / 'marker')!r})\n"
        "def killed_once(completion):\n"
        "    if completion == 'bb' and not marker.exists():\n"
        "        marker.touch()\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return float(len(completion))\n"
    )
    with loaded(drops(str(path), "killed_once", workers=workers)) as rewards:
        done = score(rewards, ["a", "bb", "ccc"] * 20)
    assert values(done) == [1.0, 2.0, 3.0] * 20
    assert not done.failures


def test_quick_calls_travel_together_and_a_bad_one_among_them_is_lost_alone(file: str):
    texts = ["a"] * 400
    for place, bad in ((90, "segv"), (91, "hang"), (250, "oom"), (399, "exit")):
        texts[place] = bad
    with loaded(drops(file, "sample", **PROCESS)) as rewards:
        done = score(rewards, texts)
    assert [index for index, value in enumerate(values(done)) if value is None] == [90, 91, 250, 399]
    assert values(done).count(1.0) == 396


@pytest.mark.parametrize("mode", ["thread", "process"])
def test_a_hang_among_quick_calls_holds_up_none_that_another_worker_could_take(file: str, mode: str):
    with loaded(drops(file, "sample", mode, workers=2, timeout_s=3600.0)) as rewards:
        rewards.start()
        call = Call(unit="sample", arguments={"completion": "a"}, tokens=(1,))
        hang = replace(call, arguments={"completion": "sleep"})
        waiting = [rewards.pool_of("r").submit(hang if n == 150 else call) for n in range(300)]
        answers = [future.result(timeout=60) for n, future in enumerate(waiting) if n != 150]
        assert not waiting[150].done()
    assert len(answers) == 299
    assert not [answer for answer in answers if answer.failure]


def _alive(pid: int) -> bool:
    """Whether it runs; one that nobody has waited for yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _until(true: Callable[[], bool]) -> bool:
    end = time.monotonic() + 60
    while not true() and time.monotonic() < end:
        time.sleep(0.05)
    return true()


def test_no_process_comes_back_while_its_worker_is_closed(file: str, tmp_path: Path):
    log = tmp_path / "log"
    with loaded(drops(file, "Holding", settings={"file": str(log)})) as rewards:
        rewards.start()
        worker = ProcessWorker(_worker_spec(rewards.rewards[0], 60.0))
        worker.start()
        call = Call(unit="sample", arguments={"completion": "a"}, tokens=(1,))
        answers = worker.answer([call, replace(call, arguments={"completion": "sleep"}), call, call])
        assert next(answers).failure is None
        rest: list[Any] = []
        thread = threading.Thread(target=lambda: rest.extend(answers))
        thread.start()
        assert _until(lambda: worker._busy)
        worker.abandon()
        thread.join(timeout=60)
        assert [answer.failure.what for answer in rest] == ["was closed before the call was over"] * 3
        assert [answer.failure for answer in worker.answer([call])] == [rest[0].failure]
        worker.close()
        pids = [int(line.split()[1]) for line in log.read_text().splitlines()]
    assert len(pids) == 2  # the pool's and this one's, each set up once
    assert not [pid for pid in pids if _alive(pid)]


COMES_UP_ONCE = '''
import os, pathlib
class Once:
    """Its first ``workers`` setups succeed, all others fail."""
    def __init__(self, *, folder, workers):
        self.folder, self.workers = pathlib.Path(folder), workers
    def setup(self):
        (self.folder / f"setup_{os.getpid()}").touch()
        if len(list(self.folder.glob("setup_*"))) > self.workers:
            raise OSError("no room left")
    def __call__(self, completion):
        if completion == "exit":
            os._exit(3)
        return 1.0
'''


@pytest.mark.parametrize("workers", [1, 2])
def test_a_worker_that_does_not_come_up_again_is_given_up(tmp_path: Path, workers: int):
    path, folder = tmp_path / "own.py", tmp_path / "setups"
    path.write_text(COMES_UP_ONCE)
    folder.mkdir()
    settings = {"folder": str(folder), "workers": workers}
    with loaded(drops(f"{path}", "Once", workers=workers, settings=settings)) as rewards:
        rewards.start()
        done = score(rewards, ["exit", *["a"] * 39])
        assert _until(lambda: len(list(folder.iterdir())) > workers)
        assert values(score(rewards, ["a", "a"])) == ([None] * 2 if workers == 1 else [1.0] * 2)
    assert len(list(folder.iterdir())) == workers + 1  # one try, not one a call
    if workers == 1:
        assert values(done) == [None] * 40
        assert {failure.error for failure in done.failures[1:]} == {"raised OSError: no room left"}
    else:  # what the lost worker leaves is done by the other
        assert values(done) == [None, *[1.0] * 39]
    assert "exit code 3" in done.failures[0].error


@pytest.mark.parametrize("mode", ["inline", "thread"])
def test_a_close_that_fails_is_logged_and_all_others_are_closed(
    tmp_path: Path, mode: str, caplog: pytest.LogCaptureFixture
):
    path = tmp_path / "own.py"
    path.write_text(
        "class Good:\n    def __init__(self, *, file):\n        self.file = file\n"
        "    def __call__(self, completion):\n        return 1.0\n"
        "    def close(self):\n        open(self.file, 'w').close()\n"
        "class Bad:\n    def __call__(self, completion):\n        return 1.0\n"
        "    def close(self):\n        raise OSError('the server is away')\n"
    )
    names = ["first", "last"]
    good = [
        {"function": f"{path}:Good", "name": n, "mode": mode, "settings": {"file": str(tmp_path / n)}} for n in names
    ]
    with loaded(good[0], {"function": f"{path}:Bad", "mode": mode}, good[1]) as rewards:
        assert values(score(rewards, ["a", "b"])) == [3.0, 3.0]
    assert [name for name in names if (tmp_path / name).exists()] == names
    assert "reward 'Bad' could not be closed" in caplog.text
    assert "OSError: the server is away" in caplog.text


@pytest.mark.parametrize("end", ["exit", "segv", "close"])
def test_what_a_reward_has_started_ends_with_its_process(tmp_path: Path, end: str):
    path = tmp_path / "own.py"
    path.write_text(
        "import ctypes, os, subprocess\n"
        "def starts(completion):\n"
        "    if completion == 'exit':\n        os._exit(3)\n"
        "    if completion == 'segv':\n        ctypes.string_at(0)\n"
        "    return float(subprocess.Popen(['sleep', '3600']).pid)\n"
    )
    with loaded(drops(str(path), "starts")) as rewards:
        pid = values(score(rewards, ["a"]))[0]
        assert pid is not None
        assert _alive(int(pid))
        if end != "close":
            assert values(score(rewards, [end])) == [None]
            assert _until(lambda: not _alive(int(pid)))
    assert _until(lambda: not _alive(int(pid)))
