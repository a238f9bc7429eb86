"""Mode auto: where each reward runs if the recipe leaves that open, and that none can hang a run."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from pathlib import Path

import pytest

from rlkl.cli import main
from rlkl.errors import RewardError
from rlkl.recipe import reward_section
from rlkl.rewards import load_rewards
from rlkl.rewards.execution.call import CallResult
from rlkl.rewards.execution.pool import WorkerPool
from rlkl.rewards.function.arguments import Call
from tests.unit.rewards.score_texts import loaded, score, values

REWARDS = """
import os, time

def sleeps(completion):
    if "sleep" in completion:
        time.sleep(3600)
    return 1.0

def process_id(completion):
    return float(os.getpid())

class Counts:
    def setup(self):
        self.calls = 0
    def __call__(self, completion):
        self.calls += 1
        return float(self.calls)
"""


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "own.py"
    path.write_text(REWARDS)
    return str(path)


def test_files_run_in_a_process_and_functions_from_python_here(file: str):
    def here(completion):
        return float(os.getpid())

    with loaded({"function": f"{file}:process_id"}) as rewards:
        there = values(score(rewards, ["a", "b"], ["c", "d"]))
    assert len(set(there)) == 1
    assert there[0] != os.getpid()
    assert values(score(load_rewards([], [here]), ["a", "b"])) == [os.getpid()] * 2


def test_the_one_process_keeps_what_a_reward_gathers(file: str):
    with loaded({"function": f"{file}:Counts"}) as rewards:
        first, second = score(rewards, ["a", "b"]), score(rewards, ["c", "d"])
    assert values(first) + values(second) == [1.0, 2.0, 3.0, 4.0]


def test_score_ends_at_a_function_that_sleeps_and_names_the_sample(
    file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """Every sample sleeps for an hour, and nothing is set but the default's length."""
    monkeypatch.setattr(reward_section, "DEADLINE_S", 1.0)
    rows = [{"prompt": f"{n}+1=", "completion": [f"sleep {n}", "sleep"]} for n in range(10)]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    start = time.monotonic()
    assert main(["score", "--data", str(data), f"--reward={file}:sleeps"]) == 1
    assert time.monotonic() - start < 60
    told = capsys.readouterr().err
    assert "reward 'sleeps' took longer than timeout_s = 1 on prompt row-0, completion 'sleep 0'" in told
    assert "raise timeout_s" in told


def test_a_run_stops_at_the_first_failure_that_is_one_too_many(file: str, tmp_path: Path):
    section = {"function": f"{file}:sleeps", "timeout_s": 2.0, "on_error": "drop_sample"}
    with loaded(section, folder=tmp_path) as rewards:
        start = time.monotonic()
        with pytest.raises(RewardError, match=r"failed on 5 of 40 samples \(7 were scored by then\) \(timeout 5\)"):
            score(rewards, ["a", "b"] + ["sleep"] * 38)
        assert time.monotonic() - start < 60  # all would take more than 76 s
    assert len((tmp_path / "failures" / "step_000003.jsonl").read_text().splitlines()) == 5


def test_rewards_start_side_by_side(tmp_path: Path):
    """Each set-up waits for those of all others."""
    path = tmp_path / "together.py"
    path.write_text(
        "import os, pathlib, time\n"
        "class Together:\n"
        "    def __init__(self, *, folder):\n        self.folder = pathlib.Path(folder)\n"
        "    def setup(self):\n"
        "        (self.folder / str(os.getpid())).touch()\n"
        "        end = time.monotonic() + 120\n"
        "        while len(list(self.folder.iterdir())) < 5:\n"
        "            assert time.monotonic() < end\n"
        "            time.sleep(0.05)\n"
        "    def __call__(self, completion):\n        return 1.0\n"
    )
    (tmp_path / "up").mkdir()
    settings = {"settings": {"folder": str(tmp_path / "up")}, "mode": "process"}
    with loaded(*({"function": f"{path}:Together", "name": f"one{n}", **settings} for n in range(5))) as rewards:
        rewards.start()
    assert len(list((tmp_path / "up").iterdir())) == 5


def test_a_closed_pool_refuses_calls():
    """A thread that still scores when a run ends with an error must not wait for ever."""

    class Answers:
        broken = None

        def start(self) -> None: ...

        def answer(self, calls: Sequence[Call]) -> Iterator[CallResult]:
            yield from (CallResult() for _ in calls)

        def close(self) -> None: ...

        def abandon(self) -> None: ...

    pool = WorkerPool([Answers()])
    call = Call(unit="sample", arguments={}, tokens=(1,))
    assert pool.submit(call).result(60) == CallResult()
    pool.close()
    with pytest.raises(CancelledError):
        pool.submit(call).result(60)
