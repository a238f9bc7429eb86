"""Workers are replaced on one thread while another one publishes or samples."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlkl.actors import stacks
from rlkl.errors import ActorDiedError, WeightSyncError
from tests.unit.actors.fake_ray import TIMEOUT_S, FakeRay, Gate, in_thread
from tests.unit.actors.rollout import Cluster, ends, requests


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    fake = FakeRay()
    fake.install(monkeypatch)
    monkeypatch.setattr(stacks, "_KEPT", stacks._Kept())
    return fake


def test_a_publish_waits_for_a_worker_that_is_brought_to_the_version_before():
    """The sampling thread has sent version 1 to the new worker when the loop's thread has packed version 2."""
    receives, packed = Gate(), Gate()
    cluster = Cluster(2, anew=[{"receive 1": receives.pass_through}])
    cluster.publish(0)
    cluster.publish(1)
    cluster.ranks.packed = {2: packed}
    cluster.actors[0].kill()
    cluster.sampler.submit(requests(4))
    sampling = in_thread(lambda: cluster.look(4))
    receives.wait_until_reached()
    publishing = in_thread(lambda: cluster.publish(2))
    packed.wait_until_reached()
    packed.open()
    receives.open()

    assert len(sampling.result(TIMEOUT_S)) == 4
    assert publishing.result(TIMEOUT_S) == 0.0
    assert [call for call in cluster.anew[0].calls if call != "submit"] == ["start", "receive 1", "receive 2"]
    assert [host.version for host in (cluster.hosts[1], *cluster.anew)] == [2, 2]


def test_a_worker_that_is_being_replaced_is_asked_nothing():
    """The loop's thread replaces it in a publish. The sampling thread meanwhile uses the other worker alone."""
    starts = Gate()
    cluster = Cluster(2, anew=[{"start": starts.pass_through}])
    cluster.publish(0)
    cluster.hosts[0].samples.clear()
    cluster.hosts[0].hooks["receive 1"] = ends
    cluster.sampler.submit(requests(4))  # two each
    looks = cluster.sampler.finished()
    found = dict(next(looks))
    publishing = in_thread(lambda: cluster.publish(1))
    starts.wait_until_reached()
    for number in range(4, 10):
        cluster.sampler.submit_together(requests(1), first=number)
    while len(found) < 8:
        found |= dict(next(looks))

    assert cluster.anew[0].calls == ["start"]
    assert sorted(found) == [2, 3, *range(4, 10)]
    starts.open()
    assert publishing.result(TIMEOUT_S) == 0.0
    for part in looks:
        found |= dict(part)
    assert sorted(found) == list(range(10))
    assert {found[number].weights_version for number in (0, 1)} == {1}  # never those that an engine starts with
    assert cluster.anew[0].calls == ["start", "receive 1", "submit"]
    assert cluster.places == [0]


def test_requests_wait_while_all_workers_are_being_replaced():
    starts = Gate()
    cluster = Cluster(1, anew=[{"start": starts.pass_through}])
    cluster.publish(0)
    cluster.hosts[0].hooks["receive 1"] = ends
    publishing = in_thread(lambda: cluster.publish(1))
    starts.wait_until_reached()
    cluster.sampler.submit_together(requests(2), first=0)
    looks = cluster.sampler.finished()
    assert next(looks) == []
    starts.open()

    publishing.result(TIMEOUT_S)
    found = dict(one for part in looks for one in part)
    assert {one.weights_version for one in found.values()} == {1}
    assert sorted(found) == [0, 1]


def test_a_worker_that_was_replaced_after_a_call_was_made_is_not_replaced_again():
    """The call went to the worker before. Its failure says nothing about the one in its place."""
    cluster = Cluster(2)
    cluster.publish(0)
    cluster.hosts[1].hooks["forget"] = ends
    workers = cluster.workers
    calls = workers.call(lambda actor: actor.forget.remote())
    first = calls[1].worker
    new = workers.replace(first, ActorDiedError("it has ended"))

    workers.collect(calls, what="drop its caches")
    assert cluster.places == [1]
    assert workers.serving(1) is new is not first
    assert cluster.anew[0].calls == ["start", "receive 0", "forget"]


def test_two_threads_that_find_the_same_worker_dead_start_one():
    starts = Gate()
    cluster = Cluster(1, anew=[{"start": starts.pass_through}])
    first = cluster.workers.serving(0)
    assert first is not None
    one = in_thread(lambda: cluster.workers.replace(first, ActorDiedError("it has ended")))
    starts.wait_until_reached()
    other = in_thread(lambda: cluster.workers.replace(first, ActorDiedError("it has ended")))
    assert cluster.workers.serving(0) is None
    starts.open()

    assert one.result(TIMEOUT_S) is other.result(TIMEOUT_S) is cluster.workers.serving(0)
    assert cluster.places == [0]


def test_a_worker_that_dies_while_it_starts_counts_and_ends_the_run_with_its_last_lines(tmp_path: Path):
    cluster = Cluster(1, anew=[{"start": ends}] * 3, logs=tmp_path)
    cluster.publish(0)
    cluster.actors[0].kill()
    cluster.sampler.submit(requests(1))

    with pytest.raises(ActorDiedError, match="rollout worker 0 ended while it was asked to start again") as caught:
        cluster.look(1)
    assert "It was started anew 2 times, and ended each time before it had finished anything." in str(caught.value)
    assert "last words of worker 0, start 1" in str(caught.value)
    assert len(cluster.anew) == 2


def test_a_worker_that_hangs_while_it_starts_is_replaced():
    never = Gate()
    cluster = Cluster(1, anew=[{"start": never.pass_through}], start_timeout_s=2.0)
    cluster.publish(0)
    cluster.actors[0].kill()
    cluster.sampler.submit(requests(1))

    assert cluster.look(1)[0].weights_version == 0
    assert cluster.places == [0, 0]
    never.open()


def test_a_worker_that_dies_while_it_catches_up_is_replaced():
    cluster = Cluster(1, anew=[{"receive 0": ends}])
    cluster.publish(0)
    cluster.actors[0].kill()
    cluster.sampler.submit(requests(1))

    assert cluster.look(1)[0].weights_version == 0
    assert cluster.places == [0, 0]


def test_a_replacement_that_differs_from_the_learner_ends_the_run_on_both_threads():
    starts, packed = Gate(), Gate()
    cluster = Cluster(2, anew=[{"start": starts.pass_through}])
    cluster.publish(0)
    cluster.publish(1)
    cluster.ranks.packed = {2: packed}
    cluster.actors[0].kill()
    cluster.sampler.submit(requests(2))
    sampling = in_thread(lambda: cluster.look(2))
    starts.wait_until_reached()
    cluster.anew[0].score = lambda probes: [(-9.0,) * (len(probe.token_ids) - 1) for probe in probes]
    publishing = in_thread(lambda: cluster.publish(2))
    packed.wait_until_reached()
    packed.open()
    starts.open()

    for thread in (sampling, publishing):
        with pytest.raises(WeightSyncError, match="rollout worker 0 disagrees with the learner"):
            thread.result(TIMEOUT_S)


@pytest.mark.parametrize("is_up", [True, False])
def test_no_worker_is_started_after_the_run(is_up: bool, fake: FakeRay):
    """A cluster of others goes on after the run; Ray of the run's own would start anew."""
    cluster = Cluster(1)
    first = cluster.workers.serving(0)
    assert first is not None
    if is_up:
        cluster.workers.close()
    fake.is_up = is_up

    with pytest.raises(ActorDiedError, match="have ended with the run"):
        cluster.workers.replace(first, ActorDiedError("it has ended"))
    with pytest.raises(ActorDiedError, match="have ended with the run"):
        cluster.sampler.submit(requests(1))
    assert cluster.places == []


def test_a_run_that_ends_starts_no_second_worker_for_one_that_is_being_replaced():
    starts = Gate()
    cluster = Cluster(1, anew=[{"start": lambda: (starts.pass_through(), ends())[0]}])
    first = cluster.workers.serving(0)
    assert first is not None
    replacing = in_thread(lambda: cluster.workers.replace(first, ActorDiedError("it has ended")))
    starts.wait_until_reached()
    cluster.workers.close()
    starts.open()

    with pytest.raises(ActorDiedError, match="have ended with the run"):
        replacing.result(TIMEOUT_S)
    assert cluster.places == [0]
