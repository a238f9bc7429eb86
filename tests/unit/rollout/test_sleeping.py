"""The states of an engine that takes turns with the learner: each call in each state, and each failure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import pytest
import torch

from rlkl.errors import RolloutError
from rlkl.rollout.engine import EngineSettings, Request
from rlkl.rollout.sleeping import EngineInTurns, State, in_turns
from rlkl.types import Completion, Probe

NEW = [("w", torch.ones(2))]
REQUESTS = [Request(prompt_token_ids=(1,), seed=seed) for seed in range(3)]


class Memory:
    """An engine that keeps account of its memory, and uses only what it holds; ``broken`` names calls that raise."""

    def __init__(self, settings: EngineSettings | None = None) -> None:
        self.calls: list[str] = []
        self.weights: str = "old"
        self.cache: str = "there"
        self.broken: set[str] = set()

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if name in self.broken:
            raise RuntimeError(f"{name} failed")

    def sleep(self) -> None:
        self.weights = self.cache = "gone"  # before the failure: half of the memory may be gone
        self._call("sleep")

    def wake(self, part: str) -> None:
        self._call(f"wake {part}")
        if part == "weights":
            self.weights = "undefined"
        else:
            self.cache = "there"

    def load_weights(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> frozenset[str]:
        assert self.weights != "gone"
        self.weights = "undefined"
        self._call("load")
        self.weights = "new"
        return frozenset({"unreached"})

    def stream(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion]]:
        for number, _ in enumerate(requests):
            self._sees_all()
            yield number, Completion(token_ids=(number,), logprobs=(-1.0,), finish_reason="stop")

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        return [completion for _, completion in self.stream(requests)]

    def score(self, probes: Sequence[Probe]) -> list[tuple[float, ...]]:
        self._sees_all()
        return [(0.0,) for _ in probes]

    def readable_weights(self) -> Iterable[tuple[str, torch.Tensor]]:
        assert self.weights in ("old", "new")
        return [("w", torch.ones(2))]

    def _sees_all(self) -> None:
        assert self.weights in ("old", "new"), "sampled from weights that are not there"
        assert self.cache == "there"


def turn_to(state: State) -> tuple[EngineInTurns, Memory]:
    """Return an engine in a state, and the memory behind it."""
    memory = Memory()
    engine = EngineInTurns(memory)
    if state is not State.AWAKE:
        engine.sleep()
    if state in (State.WEIGHTS_AWAKE, State.PUBLISHED):
        engine.wake_weights()
    if state is State.PUBLISHED:
        memory.broken = {"wake kv_cache"}
        with pytest.raises(RuntimeError):
            engine.load_weights(NEW)
        memory.broken = set()
    assert engine.state is state
    return engine, memory


CALLS: dict[str, Callable[[EngineInTurns], Any]] = {
    "sleep": lambda engine: engine.sleep(),
    "wake_weights": lambda engine: engine.wake_weights(),
    "load_weights": lambda engine: engine.load_weights(NEW),
    "stream": lambda engine: list(engine.stream(REQUESTS)),
    "generate": lambda engine: engine.generate(REQUESTS),
    "score": lambda engine: engine.score([Probe(token_ids=(1, 2))]),
    "readable_weights": lambda engine: engine.readable_weights(),
}
AFTER = {
    (State.AWAKE, "sleep"): State.ASLEEP,
    (State.AWAKE, "load_weights"): State.AWAKE,
    (State.AWAKE, "stream"): State.AWAKE,
    (State.AWAKE, "generate"): State.AWAKE,
    (State.AWAKE, "score"): State.AWAKE,
    (State.AWAKE, "readable_weights"): State.AWAKE,
    (State.ASLEEP, "wake_weights"): State.WEIGHTS_AWAKE,
    (State.WEIGHTS_AWAKE, "load_weights"): State.AWAKE,
    (State.PUBLISHED, "load_weights"): State.AWAKE,
    (State.PUBLISHED, "readable_weights"): State.PUBLISHED,
}
"""The state after each call that is allowed; all others are refused."""


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("state", State)
def test_each_call_in_each_state(state: State, call: str):
    engine, memory = turn_to(state)
    before = list(memory.calls)
    if (state, call) in AFTER:
        CALLS[call](engine)
        assert engine.state is AFTER[state, call]
        return
    with pytest.raises(RolloutError, match=rf"an engine that is {state} was asked to .*; it must be "):
        CALLS[call](engine)
    assert engine.state is state
    assert memory.calls == before, "a refused call reached the engine"


def test_a_turn_makes_its_calls_in_order_and_ends_with_the_new_weights():
    engine, memory = turn_to(State.AWAKE)
    for _ in range(2):
        engine.sleep()
        engine.wake_weights()
        assert engine.load_weights(NEW) == {"unreached"}
        assert [completion.token_ids for completion in engine.generate(REQUESTS)] == [(0,), (1,), (2,)]
    assert memory.calls == ["sleep", "wake weights", "load", "wake kv_cache"] * 2
    assert memory.weights == "new"


@pytest.mark.parametrize(
    ("broken", "start", "call", "state", "again"),
    [
        ("sleep", State.AWAKE, "sleep", State.ASLEEP, ["wake_weights", "load_weights"]),
        ("wake weights", State.ASLEEP, "wake_weights", State.ASLEEP, ["wake_weights", "load_weights"]),
        ("load", State.WEIGHTS_AWAKE, "load_weights", State.WEIGHTS_AWAKE, ["load_weights"]),
        ("wake kv_cache", State.WEIGHTS_AWAKE, "load_weights", State.PUBLISHED, ["load_weights"]),
    ],
)
def test_a_call_that_fails_never_leaves_an_engine_that_samples(
    broken: str, start: State, call: str, state: State, again: list[str]
):
    engine, memory = turn_to(start)
    memory.broken = {broken}
    with pytest.raises(RuntimeError, match=f"{broken} failed"):
        CALLS[call](engine)
    assert engine.state is state
    for samples in ("stream", "generate", "score"):
        with pytest.raises(RolloutError):
            CALLS[samples](engine)

    memory.broken = set()
    for one in again:
        CALLS[one](engine)
    assert engine.state is State.AWAKE
    assert len(engine.generate(REQUESTS)) == 3
    assert memory.weights == "new"


def test_an_engine_does_not_sleep_while_it_samples():
    engine, memory = turn_to(State.AWAKE)
    running = engine.stream(REQUESTS)
    assert next(running)[0] == 0
    with pytest.raises(RolloutError, match="cannot sleep while it samples"):
        engine.sleep()
    assert (engine.state, memory.calls) == (State.AWAKE, [])

    assert [number for number, _ in running] == [1, 2]
    engine.sleep()
    assert engine.state is State.ASLEEP


def test_a_stream_that_is_given_up_no_longer_counts():
    engine, _ = turn_to(State.AWAKE)
    for number, _ in engine.stream(REQUESTS):
        assert number == 0
        break
    engine.sleep()
    assert engine.state is State.ASLEEP


def test_a_stream_that_was_asked_for_before_a_sleep_does_not_start_after_it():
    engine, _ = turn_to(State.AWAKE)
    late = engine.stream(REQUESTS)
    engine.sleep()
    with pytest.raises(RolloutError, match="an engine that is asleep was asked to sample"):
        next(late)


def test_an_engine_that_cannot_sleep_is_refused_with_what_to_do():
    class Sleepless(Memory):
        sleep = wake = None  # type: ignore[assignment]

    assert isinstance(in_turns(Memory(), name="mine:Engine"), EngineInTurns)
    plain: Any = Sleepless()
    with pytest.raises(RolloutError, match=r"rollout\.engine = mine:Engine has no methods sleep and wake .*separate"):
        in_turns(plain, name="mine:Engine")
