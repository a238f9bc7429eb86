"""Rounds: what is asked of a function does not depend on when samples come, and each is asked for at once."""

from __future__ import annotations

import random
import threading
import time
from pathlib import Path

import pytest

from rlkl.rewards.function.arguments import State
from tests.unit.rewards.score_texts import STATE, completion, loaded, prompts, score, values

REWARDS = """
def drawn(completion, rng):
    return rng.random()

def neighbours(completions):
    return [float(sum(map(len, completions))) for _ in completions]

def told(completion, file):
    with open(file, "a") as lines:
        lines.write(completion + "\\n")
    return float(len(completion))
"""


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "own.py"
    path.write_text(REWARDS)
    return str(path)


@pytest.mark.parametrize("mode", ["inline", "thread", "process"])
def test_the_order_in_which_samples_come_changes_nothing(file: str, mode: str):
    batches = {"function": f"{file}:neighbours", "mode": mode, "batch_size": 3}
    draws = {"function": f"{file}:drawn", "mode": mode}
    groups = [["a", "bb", "ccc", "d"], ["e", "ff", "g", "hhhh"]]
    found = []
    for seed in range(3):
        order = list(range(8))
        random.Random(seed).shuffle(order)
        with loaded(batches, draws) as rewards:
            found.append(score(rewards, *groups, order=order).scored)
    assert found[0] == found[1] == found[2]
    assert [scored.components["neighbours"] for scored in found[0]] == [6.0, 6.0, 6.0, 4.0, 4.0, 4.0, 5.0, 5.0]


@pytest.mark.parametrize("mode", ["thread", "process"])
def test_a_sample_is_scored_while_others_are_still_to_come(file: str, tmp_path: Path, mode: str):
    log = tmp_path / "log"
    section = {"function": f"{file}:told", "mode": mode, "settings": {"file": str(log)}}
    with loaded(section) as rewards:
        scoring = rewards.open_round(prompts(2), samples=2, state=STATE, draws=[0, 1])
        scoring.add(3, completion("first"))
        end = time.monotonic() + 60
        while not log.exists() or log.read_text() != "first\n":
            assert time.monotonic() < end
            time.sleep(0.01)
        for index in range(3):
            scoring.add(index, completion(str(index)))
        assert values(scoring.finish()) == [1.0, 1.0, 1.0, 5.0]


def test_inline_functions_run_in_order_on_this_thread(tmp_path: Path):
    seen: list[tuple[str, str]] = []

    def spy(completion):
        seen.append((completion, threading.current_thread().name))
        return 0.0

    from rlkl.rewards import load_rewards

    score(load_rewards([], [spy]), ["a", "b"], ["c", "d"], order=[3, 1, 0, 2])
    assert seen == [(text, "MainThread") for text in "abcd"]


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


def test_a_cached_score_is_given_again_without_a_call(file: str, tmp_path: Path):
    log, run = tmp_path / "log", tmp_path / "run"
    section = {"function": f"{file}:told", "settings": {"file": str(log)}, "cache": True}
    with loaded(section, folder=run) as rewards:
        assert values(score(rewards, ["a", "bb"])) == [1.0, 2.0]
        assert values(score(rewards, ["a", "ccc"])) == [1.0, 3.0]
    assert lines(log) == ["a", "bb", "ccc"]
    with loaded(section, folder=run, first_step=2) as rewards:
        later = State(step=8, steps=10, epoch=1.0, seed=7)
        assert values(score(rewards, ["bb", "ccc"], state=later)) == [2.0, 3.0]
    assert lines(log) == ["a", "bb", "ccc"]
    Path(file).write_text(REWARDS + "\n# another source\n")
    with loaded(section, folder=run) as rewards:
        score(rewards, ["bb", "ccc"])
    assert lines(log) == ["a", "bb", "ccc", "bb", "ccc"]


def test_a_line_that_a_crash_tore_off_costs_one_score(file: str, tmp_path: Path):
    log, run = tmp_path / "log", tmp_path / "run"
    section = {"function": f"{file}:told", "settings": {"file": str(log)}, "cache": True}
    with loaded(section, folder=run) as rewards:
        score(rewards, ["a", "bb"])
    kept = run / "reward_cache" / "told.jsonl"
    kept.write_text(kept.read_text()[:-20])
    for _ in range(2):
        with loaded(section, folder=run) as rewards:
            assert values(score(rewards, ["a", "bb"])) == [1.0, 2.0]
    assert lines(log) == ["a", "bb", "bb"]


def test_what_a_function_reads_is_part_of_the_key(tmp_path: Path):
    path = tmp_path / "own.py"
    path.write_text(
        "import rlkl\ncalls = []\n"
        "def count():\n    return float(len(calls))\n"
        "def plain(completion, answer):\n    calls.append(1)\n"
        "    return rlkl.Reward(2.0, {'a': 1.0}, ('t',), [1.0, 2.0])\n"
        "def stepwise(completion, state):\n    calls.append(1)\n    return 1.0\n"
        "def failing(completion):\n    calls.append(1)\n    return 'no'\n"
        "def batch(completions):\n    calls.extend(completions)\n    return [1.0] * len(completions)\n"
    )
    later = State(step=4, steps=10, epoch=0.5, seed=7)
    for name, calls in (("plain", 2), ("stepwise", 4), ("failing", 4), ("batch", 2)):
        path.write_text(path.read_text() + f"# {name}\n")  # a new module, nothing called so far
        section = {"function": f"{path}:{name}", "cache": True, "on_error": "drop_sample", "max_failed_fraction": 1.0}
        section["mode"] = "inline"  # both in this process, so that they share what the file gathers
        counting = {"function": f"{path}:count", "role": "monitor", "mode": "inline"}
        with loaded(section, counting, folder=tmp_path / name) as rewards:
            first = score(rewards, ["a", "b"])
            second = score(rewards, ["a", "b"], state=later)
        assert second.scored[0].monitors["count"] == calls, name
        assert second.scored[0].components == first.scored[0].components
        assert second.scored[0].token_rewards == first.scored[0].token_rewards
        assert second.scored[0].tags == first.scored[0].tags
