"""Programs scored by their test cases."""

from __future__ import annotations

import json
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest

from reward_models import CodeExecution
from rlkl.errors import RewardError, RewardInputError

ADD = "Sure.\n```python\ndef add(a, b):\n    return a + b\n```\nDone."
DOUBLE = "```py\nprint(2 * int(input()))\n```"
IO_TESTS = [{"stdin": "2\n", "stdout": "4"}, {"stdin": "5", "stdout": "10\n"}, {"stdin": "1", "stdout": "3"}]


@pytest.fixture(scope="module")
def reward() -> CodeExecution:
    reward = CodeExecution(timeout_s=120)
    reward.setup()
    return reward


def fenced(program: str) -> str:
    return f"```python\n{program}\n```"


@pytest.mark.parametrize(
    ("completion", "tests", "expected"),
    [
        (DOUBLE, IO_TESTS, 2 / 3),
        (DOUBLE, json.dumps(IO_TESTS[:2]), 1.0),
        (ADD, ["assert add(1, 2) == 3", "assert add(1, 2) == 4"], 1 / 2),
        (ADD, [{"check": "assert add(1, 2) == 3"}, {"check": "assert add('a', 'b') == 'ab'", "stdin": None}], 1.0),
        (fenced("print('a  \\nb\\n\\n')"), [{"stdin": "", "stdout": "a\nb"}], 1.0),
        (fenced("print('a b')"), [{"stdin": "", "stdout": "a  b"}], 0.0),
        (fenced("print(4); raise SystemExit(1)"), [{"stdin": "", "stdout": "4"}], 0.0),
        (fenced("def add("), ["assert True"], 0.0),
        ("no program at all", ["assert True"], 0.0),
        (fenced(" "), ["assert True"], 0.0),
        (ADD, None, None),
    ],
)
def test_scores(reward, completion, tests, expected):
    assert reward(completion=completion, tests=tests) == expected


@pytest.mark.parametrize(
    "program",
    [
        "import sys; sys.exit(0)",
        "import os; os._exit(0)",
        "raise SystemExit",
        "import atexit; atexit.register(lambda: None); exit()",
        "import sys; sys.stdout.write('word'); sys.stdout = None; import os; os._exit(0)",
        "import os; os.execv('/bin/true', ['true'])",
        "import sys; sys.excepthook = lambda *a: None; import os; os.write = lambda *a: 0",
        "import builtins; builtins.exec = lambda *a: None",
    ],
)
def test_leaving_early_is_no_pass(reward, program):
    assert reward(completion=fenced(program), tests=["assert False"]) == 0.0


def test_all_or_nothing_and_the_whole_completion():
    reward = CodeExecution(score="all", extract="whole", tests_column="cases", timeout_s=120)
    reward = pickle.loads(pickle.dumps(reward))
    program = "def add(a, b): return a + b"
    assert reward(completion=program, cases=["assert add(1, 2) == 3", "assert add(2, 2) == 4"]) == 1.0
    assert reward(completion=program, cases=["assert add(1, 2) == 3", "assert add(2, 2) == 5"]) == 0.0


def test_limits_fail_the_case_and_not_the_reward():
    reward = CodeExecution(timeout_s=1, memory_mb=128, output_kb=4)
    tests = [{"stdin": "", "stdout": ""}]
    for program in (
        "while True: pass",
        "x = bytearray(10**9)",
        "while True: print('x' * 100)",
        "import os; os.abort()",
    ):
        assert reward(completion=fenced(program), tests=tests) == 0.0


def test_cases_do_not_see_each_other(reward):
    program = "import os\nprint(os.path.exists('left'))\nopen('left', 'w').close()"
    assert reward(completion=fenced(program), tests=[{"stdin": "", "stdout": "False"}] * 2) == 1.0


def test_in_threads(reward):
    with ThreadPoolExecutor(3) as threads:
        scores = threads.map(lambda tests: reward(completion=DOUBLE, tests=tests), [[case] for case in IO_TESTS] * 2)
        assert list(scores) == [1.0, 1.0, 0.0] * 2


@pytest.mark.parametrize("tests", ["no json", [], {}, [{"stdin": "1"}], [{"input": "1", "output": "2"}], [3], "[]"])
def test_wrong_cases_are_an_error(reward, tests):
    with pytest.raises(RewardError, match=r"CodeExecution: column 'tests' of this row is .*expected a list, not empty"):
        reward(completion=ADD, tests=tests)


@pytest.mark.parametrize(
    "settings",
    [
        {"score": "most"},
        {"isolation": "none"},
        {"timeout_s": 0},
        {"memory_mb": 1.5},
        {"python": "python3"},
        {"packages": 1},
    ],
)
def test_wrong_settings(settings):
    with pytest.raises(RewardInputError, match="CodeExecution: setting"):
        CodeExecution(**settings)


def test_an_interpreter_that_does_not_work_is_seen_at_set_up():
    with pytest.raises(RewardInputError, match="does not work here with /bin/false"):
        CodeExecution(python="/bin/false").setup()
