"""Engines that take turns with the learner on the memory of a GPU: which call is allowed when.

    awake --sleep--> asleep --wake_weights--> weights awake --load_weights--> published --(cache)--> awake

An engine that sleeps has lost its weights. So only new weights lead back to sampling: nothing else leaves the middle
states towards `State.AWAKE`. A call that fails leaves the engine in the state with less memory, never in one that could
sample from lost weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import StrEnum

import torch

from rlkl.errors import RolloutError
from rlkl.rollout.engine import Engine, ForgettingEngine, Request, SleepingEngine
from rlkl.types import Completion, Probe


class State(StrEnum):
    """The memory that an engine holds."""

    AWAKE = "awake"
    """Weights and key-value cache: it can sample."""
    ASLEEP = "asleep"
    """Neither of them."""
    WEIGHTS_AWAKE = "waiting for weights"
    """The memory of the weights, with undefined content."""
    PUBLISHED = "holding new weights without a key-value cache"


class EngineInTurns:
    """Wraps an engine, and raises `RolloutError` for a call that its state does not allow. For one thread."""

    def __init__(self, engine: SleepingEngine) -> None:
        self._engine = engine
        self._streams = 0
        """Streams that have not ended."""
        self.state = State.AWAKE

    def sleep(self) -> None:
        """Free the memory of weights and key-value cache; their content is lost."""
        self._require("sleep", State.AWAKE)
        if self._streams:
            raise RolloutError("an engine cannot sleep while it samples: the completions would be lost")
        self.state = State.ASLEEP  # also if the next line fails half-way
        self._engine.sleep()

    def wake_weights(self) -> None:
        """Allocate the memory of the weights again, for `load_weights`."""
        self._require("wake its weights", State.ASLEEP)
        self._engine.wake("weights")
        self.state = State.WEIGHTS_AWAKE

    def load_weights(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> frozenset[str]:
        """Load new weights; after a sleep also allocate the key-value cache, so that the engine can sample again."""
        if self.state is State.AWAKE:
            return self._engine.load_weights(tensors)
        self._require("load weights", State.WEIGHTS_AWAKE, State.PUBLISHED)
        unreached = self._engine.load_weights(tensors)
        self.state = State.PUBLISHED
        self._engine.wake("kv_cache")
        self.state = State.AWAKE
        return unreached

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """See `Engine.generate`."""
        completions = dict(self.stream(requests))
        return [completions[number] for number in range(len(requests))]

    def stream(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion]]:
        """See `Engine.stream`."""
        self._require("sample", State.AWAKE)
        return self._counted(lambda: self._engine.stream(requests))

    def score(self, probes: Sequence[Probe]) -> list[tuple[float, ...]]:
        """See `Engine.score`."""
        self._require("score probes", State.AWAKE)
        return self._engine.score(probes)

    def forget(self) -> None:
        """See `ForgettingEngine.forget`."""
        self._require("forget", State.AWAKE)
        if isinstance(self._engine, ForgettingEngine):
            self._engine.forget()

    def readable_weights(self) -> Iterable[tuple[str, torch.Tensor]]:
        """See `Engine.readable_weights`."""
        self._require("read weights back", State.AWAKE, State.PUBLISHED)
        return self._engine.readable_weights()

    def _counted(self, stream: Callable[[], Iterator[tuple[int, Completion]]]) -> Iterator[tuple[int, Completion]]:
        self._require("sample", State.AWAKE)  # it may have slept between the call and the first value
        self._streams += 1
        try:
            yield from stream()
        finally:
            self._streams -= 1

    def _require(self, what: str, *allowed: State) -> None:
        if self.state not in allowed:
            raise RolloutError(
                f"an engine that is {self.state} was asked to {what}; it must be {' or '.join(allowed)}. Engines sleep "
                "before the learner's step (rollout.placement = colocated), and only a publish brings them back"
            )


def in_turns(engine: Engine, *, name: str) -> EngineInTurns:
    """Wrap an engine; raises `RolloutError` if it cannot sleep. ``name``: ``rollout.engine``, for the message."""
    if not isinstance(engine, SleepingEngine):
        raise RolloutError(
            f"rollout.engine = {name} has no methods sleep and wake (rlkl.rollout.engine.SleepingEngine), which "
            "rollout.placement = colocated needs; set rollout.placement=separate"
        )
    return EngineInTurns(engine)
