"""Engines on a thread of their own: nothing is lost, calls run between steps, tokens know their weights."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from rlkl.errors import RolloutError
from rlkl.rollout.engine import Request, SteppedEngine
from rlkl.rollout.engine_loop import EngineLoop
from rlkl.types import Completion

PATIENCE_S = 60.0
"""No event of a test takes so long."""


class Streaming:
    """Finishes requests one after the other; notes the version that was loaded while each was sampled."""

    def __init__(self, pause_s: float = 0.0) -> None:
        self._pause_s = pause_s
        self.loaded = self.finished = 0
        self.begun = threading.Event()
        self.gate = threading.Event()
        """Closed, it holds the engine back in its first request."""
        self.gate.set()

    def stream(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion]]:
        self.begun.set()
        assert self.gate.wait(PATIENCE_S)
        for number in range(len(requests)):
            time.sleep(self._pause_s)
            self.finished += 1
            yield number, Completion(token_ids=(self.loaded,), logprobs=(-1.0,), finish_reason="stop")


class Stepping:
    """Gives each request one token a step: the version of the weights. A request's seed is its length."""

    def __init__(self) -> None:
        self.loaded = 0
        self.version = 0
        self.steps = 0
        self.threads: set[int] = set()
        self._running: dict[int, tuple[int, list[int], list[tuple[int, int]]]] = {}
        self.gate: threading.Semaphore | None = None
        """If set, each step takes one permit."""

    def add(self, requests: Sequence[tuple[int, Request]]) -> None:
        self._running |= {number: (request.seed, [], [(self.version, 0)]) for number, request in requests}

    @property
    def is_busy(self) -> bool:
        return bool(self._running)

    def step(self) -> list[tuple[int, Completion]]:
        if self.gate is not None:
            self.gate.acquire()
        self.steps += 1
        self.threads.add(threading.get_ident())
        finished: list[tuple[int, Completion]] = []
        for number, (length, tokens, versions) in list(self._running.items()):
            tokens.append(self.loaded)
            if len(tokens) == length:
                del self._running[number]
                sampled = Completion(
                    token_ids=tuple(tokens),
                    logprobs=(-1.0,) * length,
                    finish_reason="stop",
                    weights_version=versions[0][0],
                    versions=tuple(versions) if len(versions) > 1 else (),
                )
                finished.append((number, sampled))
        return finished

    def begin_version(self, version: int) -> None:
        self.version = version
        for _, tokens, versions in self._running.values():
            if versions[-1][1] == len(tokens):
                versions.pop()
            versions.append((version, len(tokens)))

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        raise NotImplementedError

    stream = score = load_weights = readable_weights = generate


def request(seed: int = 1) -> Request:
    return Request(prompt_token_ids=(1,), seed=seed)


def started(engine: Any) -> EngineLoop:
    return EngineLoop(lambda: engine)


def all_of(loop: EngineLoop, count: int) -> list[tuple[int, Completion]]:
    found: list[tuple[int, Completion]] = []
    while len(found) < count:
        part = loop.finished(PATIENCE_S)
        assert part
        found += part
    return found


def load(version: int) -> Any:
    def job(engine: Any) -> int:
        engine.loaded = version
        return version

    return job


def updating(loop: EngineLoop, engine: Any, version: int) -> threading.Thread:
    """Update the weights on another thread; return it once the loop knows of the update."""
    thread = threading.Thread(target=loop.update, args=(version, load(version)), daemon=True)
    thread.start()
    end = time.monotonic() + PATIENCE_S
    while loop._jobs.empty() and engine.loaded != version:
        assert time.monotonic() < end
        time.sleep(0.001)
    return thread


@pytest.mark.parametrize(("requests", "pause_s"), [(3, 0.06), (40, 0.001), (1, 0.0), (200, 0.0)])
@pytest.mark.parametrize("kind", [Streaming, Stepping])
def test_each_request_is_finished_once_under_its_own_number(kind: type, requests: int, pause_s: float):
    loop = started(kind(pause_s) if kind is Streaming else kind())
    loop.submit([(10 + n, request(1 + n % 7)) for n in range(requests)])

    numbers = [number for number, _ in all_of(loop, requests)]

    assert sorted(numbers) == list(range(10, 10 + requests))
    assert loop.finished(0.01) == []


def test_parts_are_some_time_apart_but_the_last_one_comes_at_once():
    loop = started(Streaming(0.02))
    start = time.monotonic()
    loop.submit([(n, request()) for n in range(50)])  # at least 1 s
    parts: list[int] = []
    while sum(parts) < 50:
        parts.append(len(loop.finished(PATIENCE_S)))
    assert 2 <= len(parts) <= (time.monotonic() - start) / 0.05 + 2


def test_requests_join_those_that_run():
    engine = Stepping()
    engine.gate = threading.Semaphore(0)
    loop = started(engine)
    loop.submit([(0, request(3))])
    engine.gate.release()
    while engine.steps < 1:
        time.sleep(0.001)
    loop.submit([(1, request(3))])
    for _ in range(4):
        engine.gate.release()

    found = dict(all_of(loop, 2))

    assert found.keys() == {0, 1}
    assert engine.steps in (4, 5)  # the second may have begun before the request came; one after the other: 6
    assert len(engine.threads) == 1
    assert threading.get_ident() not in engine.threads


def test_weights_change_between_two_steps_and_tokens_know_by_which_they_were_sampled():
    engine = Stepping()
    loop = started(engine)
    assert loop.update(4, load(4)) == 4
    engine.gate = threading.Semaphore(0)
    loop.submit([(0, request(6)), (1, request(2))])
    for _ in range(3):
        engine.gate.release()
    while engine.steps < 3:
        time.sleep(0.001)
    update = updating(loop, engine, 5)
    for _ in range(50):
        engine.gate.release()

    found = dict(all_of(loop, 2))
    update.join(PATIENCE_S)

    long, short = found[0], found[1]
    assert (short.token_ids, short.weights_version, short.versions) == ((4, 4), 4, ())
    (_, begin), (version, changed) = long.versions
    assert (long.weights_version, begin, version) == (4, 0, 5)
    assert long.token_ids == (4,) * changed + (5,) * (6 - changed)


def test_an_engine_that_only_streams_finishes_what_it_has_begun_before_new_weights():
    engine = Streaming(0.02)
    engine.gate.clear()
    loop = started(engine)
    loop.submit([(n, request()) for n in range(5)])
    assert engine.begun.wait(PATIENCE_S)
    update = updating(loop, engine, 1)
    engine.gate.set()
    update.join(PATIENCE_S)
    loop.submit([(5, request())])

    found = dict(all_of(loop, 6))

    assert [found[n].token_ids for n in range(5)] == [(0,)] * 5
    assert [found[n].weights_version for n in range(6)] == [0, 0, 0, 0, 0, 1]
    assert found[5].token_ids == (1,)


def test_an_engine_that_only_streams_begins_as_many_as_it_may():
    engine: Any = Streaming()
    engine.gate.clear()
    loop = EngineLoop(lambda: engine, at_once=2)
    loop.submit([(n, request()) for n in range(6)])
    assert engine.begun.wait(PATIENCE_S)
    updating(loop, engine, 1)
    engine.gate.set()
    found = dict(all_of(loop, 6))
    assert [found[n].weights_version for n in range(6)] == [0, 0, 1, 1, 1, 1]


def test_an_engine_that_only_streams_is_not_called_in_the_middle():
    engine: Any = Streaming(0.02)
    loop = started(engine)
    loop.submit([(n, request()) for n in range(4)])
    assert engine.begun.wait(PATIENCE_S)
    assert loop.call(lambda _: engine.finished) == 4
    assert len(all_of(loop, 4)) == 4


def test_calls_and_updates_at_random_moments_lose_nothing():
    chance = random.Random(7)
    loop = started(Stepping())
    sent, found = 0, []
    for version in range(1, 30):
        size = chance.randint(0, 5)
        loop.submit([(sent + n, request(chance.randint(1, 9))) for n in range(size)])
        sent += size
        if chance.random() < 0.5:
            loop.update(version, load(version))
        if chance.random() < 0.5:
            found += loop.finished(0.0)
    found += all_of(loop, sent - len(found))
    assert sorted(number for number, _ in found) == list(range(sent))
    for _, completion in found:
        assert completion.weights_version is not None
        spans = completion.versions or ((completion.weights_version, 0),)
        ends = [*(start for _, start in spans[1:]), len(completion.token_ids)]
        for (version, start), end in zip(spans, ends, strict=True):
            assert set(completion.token_ids[start:end]) == {version}


def test_an_engine_that_cannot_start_raises_where_it_is_started():
    def make() -> Any:
        raise RolloutError("no such model")

    with pytest.raises(RolloutError, match="no such model"):
        EngineLoop(make)


def test_a_failing_step_is_raised_by_whoever_asks_next():
    class Failing(Stepping):
        def step(self) -> list[tuple[int, Completion]]:
            raise RolloutError("out of memory")

    loop = started(Failing())
    loop.submit([(0, request())])
    with pytest.raises(RolloutError, match="out of memory"):
        loop.finished(PATIENCE_S)
    with pytest.raises(RolloutError, match="out of memory"):
        loop.call(lambda engine: None)


def test_a_failing_call_is_its_callers_alone():
    def job(engine: Any) -> None:
        raise RolloutError("no place for adapters")

    loop = started(Stepping())
    with pytest.raises(RolloutError, match="no place"):
        loop.call(job)
    loop.submit([(0, request())])
    assert len(all_of(loop, 1)) == 1


def test_idle_time_is_time_without_requests_from_the_first_ones_on():
    loop = started(Streaming(0.1))
    time.sleep(0.1)
    assert loop.idle_s == 0.0
    loop.submit([(0, request())])
    all_of(loop, 1)
    time.sleep(0.2)
    start = time.monotonic()
    before = loop.idle_s
    assert before >= 0.2
    loop.submit([(1, request()), (2, request())])
    all_of(loop, 2)
    assert loop.idle_s - before <= time.monotonic() - start - 0.2 + 0.05  # sampling took 0.2 s


def test_steps_are_known_by_methods():
    assert isinstance(Stepping(), SteppedEngine)
    assert not isinstance(Streaming(), SteppedEngine)
