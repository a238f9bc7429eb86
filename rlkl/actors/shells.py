"""The two actors, as plain classes: what runs inside a Ray actor, and nothing that knows of Ray."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rlkl.learner.learner import Learner, LearnerSpec
from rlkl.rollout.engine import Engine, EngineSettings, Request, engine_class
from rlkl.types import Completion, Example, Image, Probe
from rlkl.weights import (
    Expected,
    HostMemoryChannel,
    Outbox,
    Receipt,
    WeightPackage,
    differing_weights,
    receive,
)


class RolloutWorker:
    """Hosts one engine."""

    _engine: Engine

    def __init__(self) -> None:
        self._channel = HostMemoryChannel()

    def start(self, engine: str, settings: EngineSettings) -> None:
        """Bring the engine up. A call of its own, because Ray tells the errors of a constructor as text only."""
        self._engine = engine_class(engine)(settings)

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        return self._engine.generate(requests)

    def receive(self, package: WeightPackage, probes: Sequence[Probe]) -> Receipt:
        return receive(self._engine, self._channel, package, probes)

    def differing_weights(self, package: WeightPackage) -> list[str]:
        return differing_weights(self._engine, self._channel, package)


class LearnerWorker:
    """Hosts the learner, and the log-probs that prove a publish."""

    _learner: Learner

    def __init__(self) -> None:
        self._outbox = Outbox(HostMemoryChannel())
        self._probes: Sequence[Probe] = ()
        self._before: list[tuple[float, ...]] | None = None

    def start(self, spec: LearnerSpec) -> None:
        """Load the policy. A call of its own, because Ray tells the errors of a constructor as text only."""
        self._learner = Learner(spec)

    def prepare(
        self, examples: Sequence[Example], left_out: Sequence[Example], probes: Sequence[Probe], step: int
    ) -> dict[str, float]:
        """`Learner.prepare`, and the probes' log-probs before the step."""
        self._probes, self._before = probes, self._learner.probe(probes)
        return self._learner.prepare(examples, left_out, step=step)

    def token_columns(self) -> dict[str, list[tuple[float, ...]]]:
        return self._learner.token_columns()

    def corrupted_pictures(self) -> dict[int, tuple[Image, ...]]:
        return self._learner.corrupted_pictures()

    def step(self, step: int) -> dict[str, float]:
        return self._learner.step(step)

    def pack(self, version: int) -> WeightPackage:
        """The weights as they are now; raises `WeightSyncError` when a step left them unchanged."""
        must_change, self._learner.moved = self._learner.moved, False
        return self._outbox.pack(self._learner.policy.published(), version=version, must_change=must_change)

    def expect(self, probes: Sequence[Probe]) -> Expected:
        """What an engine with the weights as they are now must answer."""
        before = self._before if tuple(probes) == tuple(self._probes) else None
        return Expected(before=before, after=self._learner.probe(probes))

    def save(self, folder: str) -> None:
        self._learner.save(Path(folder))

    def restore(self, folder: str) -> None:
        self._learner.restore(Path(folder))
