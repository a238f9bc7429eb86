"""Results of a worker process: numbers survive exactly, and the driver runs nothing that the process wrote."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import pytest

from rlkl.rewards.execution.call import CallResult
from rlkl.rewards.execution.wire import WireError, decode_answer, decode_start, encode_answer, encode_start
from rlkl.rewards.function.result import Failure, Score, raised
from tests.unit.rewards.score_texts import loaded, score, values

NUMBERS = (0.0, -0.0, 0.1 + 0.2, 1 / 3, 5e-324, 2.0**-1074, 3.4e38, -1e-5, float(2**53 + 1), math.pi)


def test_numbers_abstentions_components_and_tags_come_back_exactly():
    scores = [Score(value=number, components={"a.b-c_1": -number}, token_values=NUMBERS) for number in NUMBERS]
    outcomes = (*scores, Score(value=None, tags=("\ud800 lone", "snow \u2603", "")))
    answer = CallResult(outcomes=outcomes, seconds=1e-7)
    back = decode_answer(encode_answer(7, answer), number=7, samples=len(outcomes))
    assert back == answer
    assert repr(back) == repr(answer)  # 0.0 equals -0.0


def test_failures_come_back_with_their_traceback_and_without_the_exception():
    failure = raised(KeyError("no such thing"))
    answer = CallResult(outcomes=(Score(value=1.0), failure), seconds=0.5)
    back = decode_answer(encode_answer(1, answer), number=1, samples=2)
    assert back == answer
    assert isinstance(back.outcomes[1], Failure)
    assert "KeyError" in back.outcomes[1].traceback
    assert back.outcomes[1].cause is None
    whole = CallResult(failure=failure)
    assert decode_answer(encode_answer(2, whole), number=2, samples=5) == whole
    assert decode_start(encode_start(failure)) == failure
    assert decode_start(encode_start(None)) is None


SCORE = {"value": 1.0, "components": {}, "tags": [], "token_values": []}
FAILURE = {"kind": "raised", "what": "raised", "detail": "", "traceback": ""}


def body(outcome: Any = None, **changes: Any) -> bytes:
    fields = {"number": 1, "seconds": 0.0, "failure": None, "outcomes": [outcome or {"score": SCORE}]}
    return json.dumps(fields | changes).encode()


def test_the_bodies_below_differ_from_a_good_one_in_one_thing():
    assert decode_answer(body(), number=1, samples=1).outcomes == (Score(value=1.0),)


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\x80\x04N.",  # a pickle
        b"\xff\xfe",
        b"[" * 100_000,
        b"1" * 5000,
        b"[]",
        body(number=2),
        body(number=True),
        body(number="1"),
        body(seconds=None),
        body(seconds=math.nan),
        body(outcomes=[]),
        body(outcomes=[{"score": SCORE}] * 2),
        body(outcomes="x"),
        body(failure=FAILURE),
        body(failure={}),
        body(failure=FAILURE | {"kind": "fine"}, outcomes=[]),
        body(failure=FAILURE | {"detail": 5}, outcomes=[]),
        body(further=1),
        body({"score": SCORE, "failure": FAILURE}),
        body({"failure": None}),
        body({"score": SCORE | {"value": "1"}}),
        body({"score": SCORE | {"value": True}}),
        body({"score": SCORE | {"value": 10**400}}),
        body({"score": SCORE | {"value": math.inf}}),
        body().replace(b'"value": 1.0', b'"value": 1e999'),
        body({"score": SCORE | {"components": [1.0]}}),
        body({"score": SCORE | {"components": {"a/b": 1.0}}}),
        body({"score": SCORE | {"components": {"a": None}}}),
        body({"score": SCORE | {"tags": "odd"}}),
        body({"score": SCORE | {"tags": [1]}}),
        body({"score": SCORE | {"token_values": ["1"]}}),
    ],
)
def test_whatever_is_not_an_answer_is_refused(message: bytes):
    with pytest.raises(WireError):
        decode_answer(message, number=1, samples=1)


REWARDS = '''
import math, os, pickle, stat, struct, subprocess, sys, time

def sockets():
    """Descriptors of this process, beyond those of its terminal, that something can be sent to."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            if int(name) > 2 and stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                found.append(int(name))
        except OSError:
            pass
    return found

class Payload:
    """Loading its pickle writes the marker."""
    def __init__(self, marker):
        self.marker = marker
    def __reduce__(self):
        return exec, (f"open({self.marker!r}, 'w').write('run')",)

def attack(marker):
    body = pickle.dumps(Payload(marker))
    for number in sockets():
        os.write(number, struct.pack(">I", len(body)) + body)
    return float(len(sockets()))

def itself(completion, marker):
    return attack(marker) if completion == "attack" else 1.0

def program(completion, marker):
    """The program runs in a process of its own, which inherits all descriptors that may be inherited."""
    if completion != "attack":
        return 1.0
    code = f"import sys; sys.path.insert(0, {os.path.dirname(__file__)!r}); import own; print(own.attack({marker!r}))"
    done = subprocess.run([sys.executable, "-c", code], close_fds=False, capture_output=True, check=True)
    return float(done.stdout)

def forked(completion, marker):
    if completion != "attack":
        return 1.0
    child = os.fork()
    if not child:
        try:
            os._exit(int(attack(marker)))
        finally:
            os._exit(99)
    return float(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

def begins_a_message(completion):
    if completion == "attack":
        os.write(sockets()[0], struct.pack(">I", 1_000_000))
    return 1.0

def announces_gigabytes(completion):
    if completion == "attack":
        os.write(sockets()[0], struct.pack(">I", 2**31 - 1))
    return 1.0

def answers_in_advance(completion):
    if completion == "attack":
        score = b'{"value": 9.0, "components": {}, "tags": [], "token_values": []}'
        body = b'{"number": 5, "seconds": 0.0, "failure": null, "outcomes": [{"score": ' + score + b'}]}'
        os.write(sockets()[0], struct.pack(">I", len(body)) + body)
    return 1.0
'''


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "own.py"
    path.write_text(REWARDS)
    return str(path)


def drops(file: str, name: str, **more: Any) -> dict[str, Any]:
    section = {"function": f"{file}:{name}", "mode": "process", "on_error": "drop_sample", "max_failed_fraction": 1.0}
    return section | more


def test_a_pickle_that_a_program_writes_to_the_connection_is_not_loaded(file: str, tmp_path: Path):
    marker = tmp_path / "marker"
    with loaded(drops(file, "itself", settings={"marker": str(marker)})) as rewards:
        done = score(rewards, ["a", "attack"], ["b", "c"])
    assert not marker.exists()
    assert values(done) == [1.0, None, 1.0, 1.0]
    assert done.failures[0].kind == "crashed"
    assert "wrote to rlkl's connection, and not an answer" in done.failures[0].error


@pytest.mark.parametrize("name", ["program", "forked"])
def test_programs_that_a_reward_starts_do_not_have_the_connection(file: str, name: str, tmp_path: Path):
    marker = tmp_path / "marker"
    with loaded(drops(file, name, settings={"marker": str(marker)})) as rewards:
        assert values(score(rewards, ["a", "attack"], ["b", "c"])) == [1.0, 0.0, 1.0, 1.0]
    assert not marker.exists()


@pytest.mark.parametrize(
    ("name", "kind"),
    [("begins_a_message", "timeout"), ("announces_gigabytes", "crashed"), ("answers_in_advance", "crashed")],
)
def test_whatever_is_written_to_the_connection_costs_its_own_sample_and_no_wait(file: str, name: str, kind: str):
    with loaded(drops(file, name, timeout_s=3.0)) as rewards:
        start = time.monotonic()
        done = score(rewards, ["a", "attack"], ["b", "c"])
        assert time.monotonic() - start < 60
    assert values(done) == [1.0, None, 1.0, 1.0]
    assert done.failures[0].kind == kind


def test_a_score_is_the_same_inline_and_in_a_process(tmp_path: Path):
    path = tmp_path / "own.py"
    path.write_text(
        "import math, rlkl\n"
        f"NUMBERS = {NUMBERS!r}\n"
        "def f(completion, completion_ids):\n"
        "    if completion == 'none':\n        return None\n"
        "    if completion == 'fails':\n        raise ValueError('no')\n"
        "    part = NUMBERS[len(completion)]\n"
        "    tokens = [part / (n + 3) for n, _ in enumerate(completion_ids)]\n"
        "    return rlkl.Reward(part, {'own': part, 'third': part / 3}, ['tag', completion], tokens)\n"
    )
    found = []
    for mode in ("inline", "process"):
        section = {"function": f"{path}:f", "mode": mode, "on_error": "drop_sample", "max_failed_fraction": 1.0}
        with loaded(section) as rewards:
            done = score(rewards, ["x" * n for n in range(len(NUMBERS))] + ["none", "fails"])
        found.append((repr(done.scored), [(failure.kind, failure.error) for failure in done.failures]))
    assert found[0] == found[1]
