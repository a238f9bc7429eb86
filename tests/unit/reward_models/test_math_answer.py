"""math-verify in processes of its own: right in any thread, and no failure is a 0."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from reward_models import MathAnswer
from rlkl.errors import RewardError, RewardInputError

CASES = [
    (r"so \boxed{\frac{2}{4}}", "1/2", 1.0),
    (r"The answer is $x^2 + 2x + 1$.", "(x+1)^2", 1.0),
    ("1,234", "1234", 1.0),
    ("it is 3", 3.0, 1.0),
    (r"\boxed{(2,3)}", "(2,3)", 1.0),
    (r"\boxed{\{2, 1\}}", r"$\{1,2\}$", 1.0),
    ("4", "3", 0.0),
    ("I do not know", "3", 0.0),
    (r"\boxed{\frac{1}{}", "3", 0.0),
    ("", "3", 0.0),
]


@pytest.fixture(scope="module")
def reward() -> Iterator[MathAnswer]:
    reward = MathAnswer(timeout_s=120)
    reward.setup()
    yield reward
    reward.close()


@pytest.mark.parametrize(("completion", "answer", "expected"), CASES)
def test_on_the_main_thread(reward, completion, answer, expected):
    assert reward(completion=completion, answer=answer) == expected


def test_on_other_threads_at_the_same_time(reward):
    def score(case):
        assert threading.current_thread() is not threading.main_thread()
        return reward(completion=case[0], answer=case[1])

    with ThreadPoolExecutor(3) as threads:
        assert list(threads.map(score, CASES * 3)) == [expected for _, _, expected in CASES * 3]


def test_no_alarm_is_ever_set(reward, monkeypatch):
    def refuse(*arguments):
        raise AssertionError("set an alarm")

    monkeypatch.setattr(signal, "alarm", refuse)
    monkeypatch.setattr(signal, "setitimer", refuse)
    assert reward(completion="3", answer="3") == 1.0


def test_a_row_without_an_answer_abstains(reward):
    assert reward(completion="3", answer=None) is None


def test_an_answer_without_an_end_is_an_error_and_the_next_one_is_scored():
    reward = MathAnswer(timeout_s=1)
    with pytest.raises(RewardError, match=r"no verdict within 1 s \(expected '\$3\$', completion .*9\^"):
        reward(completion=r"\boxed{9^{9^{9^9}}}", answer="3")
    reward.timeout_s = 120
    assert reward(completion="3", answer="3") == 1.0
    reward.close()


def test_a_child_process_that_dies_is_replaced():
    reward = MathAnswer(timeout_s=120)
    reward.setup()
    os.kill(reward._idle[0]._process.pid, signal.SIGKILL)
    reward._idle[0]._process.wait()
    assert reward(completion="3", answer="3") == 1.0
    os.kill(reward._idle[0]._process.pid, signal.SIGSTOP)  # stands for one that is killed in the middle of an answer
    threading.Timer(2.0, os.kill, (reward._idle[0]._process.pid, signal.SIGKILL)).start()
    with pytest.raises(RewardError, match="ended with exit code -9"):
        reward(completion="3", answer="3")
    reward.close()


def test_memory_has_a_limit():
    """A question that the child process cannot hold ends it; the next one is answered by another."""
    reward = MathAnswer(timeout_s=120, memory_mb=256)
    assert reward(completion="3", answer="3") == 1.0
    process = reward._idle[0]._process
    with pytest.raises(BrokenPipeError):
        _write_a_gigabyte(process)
    assert process.wait(timeout=120) == 1
    assert reward(completion="3", answer="3") == 1.0
    reward.close()


def _write_a_gigabyte(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    for _ in range(100):
        process.stdin.write(b"1" * 10_000_000)


def test_gold_that_is_no_mathematics_is_an_error(reward):
    with pytest.raises(
        RewardError, match=r"column 'answer' of this row is 'nothing \$\$', in which math-verify finds no"
    ):
        reward(completion="3", answer="nothing $$")


def test_only_what_is_boxed():
    reward = MathAnswer(extract="boxed", answer_column="gold", timeout_s=120)
    reward = pickle.loads(pickle.dumps(reward))
    assert reward(completion="it is 3", gold="3") == 0.0
    assert reward(completion=r"it is \boxed{3}, not 4", gold="3") == 1.0
    reward.close()


def test_close_leaves_no_process(reward):
    other = MathAnswer(timeout_s=120)
    other.setup()
    process = other._idle[0]._process
    other.close()
    assert process.returncode == -signal.SIGKILL


@pytest.mark.parametrize("settings", [{"timeout_s": 0}, {"memory_mb": 10}, {"extract": "box"}, {"answer_column": ""}])
def test_wrong_settings(settings):
    with pytest.raises(RewardInputError, match="MathAnswer: setting"):
        MathAnswer(**settings)
