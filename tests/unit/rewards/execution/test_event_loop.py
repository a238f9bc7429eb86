"""Async functions on one event loop: a call that blocks it costs its own sample, and no neighbour's."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from rlkl.rewards.execution import event_loop
from tests.unit.rewards.score_texts import loaded, score, values

REWARDS = """
import asyncio, time

async def answers(completion):
    if completion == "block":
        time.sleep(8)
    if completion == "forever":
        while True:
            time.sleep(0.1)
    if completion == "child":
        await asyncio.gather(asyncio.sleep(0.1), blocks())
    await asyncio.sleep(0.1)
    return 1.0

async def blocks():
    time.sleep(8)

async def computes(completion):
    for _ in range(3):
        time.sleep(0.1)
        await asyncio.sleep(0.01)
    return 1.0

async def stubborn(completion):
    while completion == "stubborn":
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            pass
    await asyncio.sleep(0.1)
    return 1.0

async def cancels(completion):
    if completion == "cancel":
        raise asyncio.CancelledError
    return 1.0

async def leaves_a_task(completion):
    if completion == "leave":
        leaves_a_task.task = asyncio.create_task(blocks_later())
        return 1.0
    await asyncio.sleep(1.0)
    return 1.0

async def blocks_later():
    await asyncio.sleep(0.2)
    time.sleep(60)

class Connected:
    async def setup(self):
        self.loop = asyncio.get_running_loop()
        self.lock = asyncio.Lock()
    async def __call__(self, completion):
        if completion == "block":
            time.sleep(8)
        async with self.lock:
            await asyncio.sleep(0.05)
        return float(self.loop is asyncio.get_running_loop())
"""


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "own.py"
    path.write_text(REWARDS)
    return str(path)


def on_threads(file: str, name: str, *, workers: int = 10, timeout_s: float = 2.0) -> dict[str, Any]:
    section = {"function": f"{file}:{name}", "mode": "thread", "workers": workers, "timeout_s": timeout_s}
    return section | {"on_error": "drop_sample", "max_failed_fraction": 1.0}


@pytest.mark.parametrize("bad", [{4: "block"}, {4: "forever", 20: "child"}])
def test_a_call_that_blocks_fails_alone(file: str, bad: dict[int, str]):
    """One that blocks for a while; one that never ends, and one whose task blocks."""
    texts = [bad.get(index, "a") for index in range(30)]
    with loaded(on_threads(file, "answers")) as rewards:
        start = time.monotonic()
        done = score(rewards, texts)
        assert time.monotonic() - start < 40
    assert [index for index, value in enumerate(values(done)) if value is None] == list(bad)
    assert {failure.kind for failure in done.failures} == {"timeout"}
    assert all("time.sleep" in failure.traceback for failure in done.failures)


def test_calls_that_compute_for_a_while_do_not_use_up_the_time_of_others(file: str):
    with loaded(on_threads(file, "computes", workers=8)) as rewards:
        assert values(score(rewards, ["a"] * 8)) == [1.0] * 8


def test_a_call_that_cannot_be_cancelled_is_left_to_itself(file: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(event_loop, "_CANCEL_S", 0.5)
    with loaded(on_threads(file, "stubborn", workers=4, timeout_s=2.0)) as rewards:
        done = score(rewards, ["a", "stubborn", "b", "c"])
    assert values(done) == [1.0, None, 1.0, 1.0]


def test_a_call_that_cancels_itself_is_not_overdue(file: str):
    with loaded(on_threads(file, "cancels")) as rewards:
        done = score(rewards, ["a", "cancel"])
    assert values(done) == [1.0, None]
    assert (done.failures[0].kind, done.failures[0].error) == ("raised", "raised CancelledError: it was cancelled")


def test_a_task_that_nobody_waits_for_does_not_hold_up_the_run(file: str):
    with loaded(on_threads(file, "leaves_a_task", workers=3, timeout_s=2.0)) as rewards:
        start = time.monotonic()
        done = score(rewards, ["leave", "a", "b"])
        assert time.monotonic() - start < 40
    assert values(done)[0] == 1.0
    assert None in values(done)[1:]
    assert {failure.kind for failure in done.failures} == {"timeout"}


def test_an_async_setup_is_awaited_again_on_the_new_loop(file: str):
    with loaded(on_threads(file, "Connected", workers=5)) as rewards:
        assert values(score(rewards, ["a"] * 6 + ["block"] + ["a"] * 6)) == [1.0] * 6 + [None] + [1.0] * 6
