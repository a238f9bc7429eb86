"""Deadlines of the learner's ranks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import ray

from rlkl.actors import stacks
from rlkl.actors.learners import LearnerRanks
from rlkl.actors.weight_transport import GroupSettings, GroupTransport
from rlkl.actors.workers import Workers
from rlkl.errors import DeadlineError
from rlkl.weights import Probes
from tests.unit.actors.fake_ray import FakeActor, FakeRay, Gate

TIMEOUT_S = 2.0


class Hangs:
    """A learner that never ends a step, nor a broadcast."""

    def __init__(self) -> None:
        self.gate = Gate()
        self.calls: list[str] = []

    def learn(self) -> None:
        self.calls.append("learn")
        self.gate.pass_through()

    def finished_steps(self) -> int:
        self.calls.append("finished_steps")
        return 3

    def open_group(self, host: str, timeout_s: float) -> int:
        return 1

    def join_group(self, place: Any) -> None: ...

    def manifest(self, version: int) -> str:
        return f"tensors of version {version}"

    def send(self, manifest: str) -> None:
        self.gate.pass_through()


class InGroup:
    """A worker whose part of a broadcast has no end, either."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    def join_group(self, place: Any) -> None: ...

    def receive_from_group(self, manifest: str, probes: Probes) -> None:
        self._gate.pass_through()


@pytest.fixture
def learner(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hangs]:
    FakeRay().install(monkeypatch)
    learner = Hangs()
    yield learner
    learner.gate.open()


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The problems for which stacks were kept."""
    kept: list[str] = []
    monkeypatch.setattr(stacks, "keep", lambda problem, asked: kept.append(problem) or "")
    return kept


def test_a_learner_that_hangs_is_waited_for_once(learner: Hangs, kept: list[str]):
    """A second call would wait behind the first one for a whole deadline, and keep the stacks again."""
    ranks = LearnerRanks([FakeActor(learner)], timeout_s=TIMEOUT_S)

    with pytest.raises(DeadlineError, match=r"the learner did not learn within 4 s") as first:
        ranks.call("learn", "learn", calls=2)
    with pytest.raises(DeadlineError) as second:
        ranks.call("name its last step", "finished_steps")
    assert second.value is first.value
    assert learner.calls == ["learn"]
    assert kept == ["the learner did not learn within 4 s."]


def test_a_broadcast_that_hangs_is_waited_for_once(learner: Hangs, kept: list[str], monkeypatch: pytest.MonkeyPatch):
    """The learner is waited for beside the workers, and then alone, under one deadline."""
    ranks = LearnerRanks([FakeActor(learner)], timeout_s=TIMEOUT_S)
    workers = Workers(actors=[FakeActor(InGroup(learner.gate))], names=["rollout worker 0"], timeout_s=TIMEOUT_S)
    transport = GroupTransport(ranks, workers, GroupSettings(host="127.0.0.1", processes=1, backend="gloo"))
    transport._join()
    waits: list[float] = []
    wait = ray.wait

    def noted(refs: Any, *, timeout: float) -> Any:
        waits.append(timeout)
        return wait(refs, timeout=timeout)

    monkeypatch.setattr(ray, "wait", noted)

    with pytest.raises(DeadlineError, match=r"the learner did not send weights within 2 s"):
        transport.publish(1, Probes(), lambda name, receipt: None)
    manifest, beside, alone = waits
    assert manifest <= TIMEOUT_S
    assert beside <= TIMEOUT_S
    assert alone == 0.0
    assert len(kept) == 1
