"""Deadlines of the sampler, on a clock of the test's own."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from rlkl.actors import stacks
from rlkl.errors import ActorDiedError
from tests.unit.actors.fake_ray import FakeRay
from tests.unit.actors.rollout import Cluster, requests

LONG_S = 10_000.0


class Clock:
    seconds = 0.0

    def monotonic(self) -> float:
        return self.seconds

    def passes(self) -> None:
        self.seconds += LONG_S


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    FakeRay().install(monkeypatch)
    monkeypatch.setattr(stacks, "_KEPT", stacks._Kept())
    clock = Clock()
    monkeypatch.setattr("rlkl.actors.sampler.time", SimpleNamespace(monotonic=clock.monotonic))
    return clock


def test_the_time_of_a_replacement_is_not_counted_against_the_other_workers(clock: Clock):
    """Both workers have answered when one of them turns out to be dead; starting another takes long."""
    cluster = Cluster(2, anew=[{"start": clock.passes}], timeout_s=60.0)
    cluster.publish(0)
    cluster.hosts[1].samples.clear()
    cluster.actors[0].kill()
    cluster.sampler.submit(requests(4))
    looks = cluster.sampler.finished()
    found = dict(next(looks))
    assert cluster.places == [0]
    cluster.hosts[1].samples.set()

    found |= {number: one for part in looks for number, one in part}
    assert sorted(found) == [0, 1, 2, 3]
    assert cluster.places == [0]


def test_the_time_in_which_nobody_looks_is_not_counted(clock: Clock):
    """Rewards that are computed on the sampling thread keep it from looking."""
    cluster = Cluster(2, timeout_s=60.0)
    cluster.publish(0)
    for host in cluster.hosts:
        host.samples.clear()
    cluster.sampler.submit(requests(4))
    looks = cluster.sampler.finished()
    assert next(looks) == []
    clock.passes()
    assert next(looks) == []
    for host in cluster.hosts:
        host.samples.set()

    assert sorted(number for part in looks for number, _ in part) == [0, 1, 2, 3]
    assert cluster.places == []


def test_a_worker_that_is_silent_while_it_is_looked_at_is_replaced(clock: Clock):
    cluster = Cluster(2, timeout_s=60.0)
    cluster.publish(0)
    cluster.hosts[1].samples.clear()
    cluster.sampler.submit(requests(4))
    found = {}
    for looks, part in enumerate(cluster.sampler.finished()):
        found |= dict(part)
        clock.seconds += 4.0
        assert looks < 100

    assert sorted(found) == [0, 1, 2, 3]
    assert cluster.places == [1]
    assert 60.0 < clock.seconds < 120.0


def test_an_error_in_a_workers_code_ends_the_run(clock: Clock):
    cluster = Cluster(1, timeout_s=60.0)

    def fails() -> None:
        raise ValueError("an engine of the user's own")

    cluster.hosts[0].hooks["submit"] = fails
    cluster.sampler.submit(requests(1))

    with pytest.raises(ActorDiedError, match="rollout worker 0 failed to generate: ValueError"):
        list(cluster.sampler.finished())
    assert cluster.places == []
