"""Rewards in actors, while the run ends."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

from rlkl.actors.rewards import RayRewardWorker
from rlkl.rewards.execution.call import CallResult
from rlkl.rewards.execution.pool import CLOSED, WorkerPool, WorkerSpec
from rlkl.rewards.function.arguments import Call
from rlkl.rewards.function.source import Source
from tests.unit.actors.fake_ray import TIMEOUT_S, FakeRay, Gate, ProcessEnds

CALL = Call(unit="sample", arguments={}, tokens=(1,))


class Host:
    """Hosts a reward that waits at a gate; see `rlkl.actors.shells.RewardHost`."""

    gate: ClassVar[Gate]
    started: ClassVar[Gate]
    closed: ClassVar[list[Host]]

    def start(self, spec: WorkerSpec) -> None:
        self.started.pass_through()

    def call(self, call: Call) -> CallResult:
        self.gate.pass_through()
        raise ProcessEnds

    def close(self) -> None:
        self.closed.append(self)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    fake = FakeRay()
    fake.install(monkeypatch)
    monkeypatch.setattr("rlkl.actors.rewards.RewardHost", Host)
    Host.gate, Host.started, Host.closed = Gate(), Gate(), []
    Host.started.open()
    return fake


def worker() -> RayRewardWorker:
    source: Any = Source(reference="unused:unused")
    return RayRewardWorker(WorkerSpec(name="slow", source=source, timeout_s=TIMEOUT_S, start_timeout_s=TIMEOUT_S))


def test_a_run_that_ends_during_a_call_starts_no_further_actor(fake: FakeRay):
    """The thread goes on after the run has ended Ray."""
    pool = WorkerPool([worker()])
    pool.ready()
    future = pool.submit(CALL)
    Host.gate.wait_until_reached()
    pool.close()
    fake.is_up = False
    Host.gate.open()

    assert future.result(TIMEOUT_S).failure == CLOSED
    assert not any(thread.is_alive() for thread in pool._threads)
    assert len(fake.spawned) == 1
    assert fake.spawned[0].is_dead


def test_a_run_that_ends_while_an_actor_starts_ends_the_actor(fake: FakeRay):
    Host.started = Gate()
    pool = WorkerPool([worker()])
    Host.started.wait_until_reached()
    pool.close()
    Host.started.open()

    assert not any(thread.is_alive() for thread in pool._threads)
    assert [actor.is_dead for actor in fake.spawned] == [True]


def test_without_ray_nothing_is_asked(fake: FakeRay):
    """The run has ended, and nobody has closed the pool."""
    one = worker()
    one.start()
    fake.is_up = False

    (answer,) = one.answer([CALL])
    assert answer.failure == CLOSED
    one.close()
    assert len(fake.spawned) == 1


def test_an_idle_reward_is_closed_before_its_actor_ends(fake: FakeRay):
    pool = WorkerPool([worker()])
    pool.ready()
    pool.close()

    assert [actor.host for actor in fake.spawned] == Host.closed
    assert fake.spawned[0].is_dead


def test_an_actor_that_ends_in_a_call_is_replaced(fake: FakeRay):
    Host.gate.open()
    one = worker()
    one.start()

    (answer,) = one.answer([CALL])
    assert answer.failure is not None
    assert answer.failure.what == "ended its actor"
    assert [actor.is_dead for actor in fake.spawned] == [True, False]
    assert one.broken is None
