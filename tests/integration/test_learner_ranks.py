"""Calls to the learner's ranks, on real Ray actors: all fail, one fails, one ends."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
import ray

from rlkl.actors.cluster import connect
from rlkl.actors.learners import LearnerRanks
from rlkl.errors import ActorDiedError, LearnerError
from rlkl.recipe import ClusterSection
from tests.integration.rank_members import Member

TIMEOUT_S = 120.0


@pytest.fixture(scope="module", autouse=True)
def _ray() -> Iterator[None]:
    connect(ClusterSection(), cpus=4)
    yield
    ray.shutdown()


@pytest.fixture
def ranks() -> Iterator[LearnerRanks]:
    actors: list[Any] = [ray.remote(Member).options(num_cpus=0).remote(rank) for rank in range(2)]
    made = LearnerRanks(actors, timeout_s=TIMEOUT_S)
    started = ray.get(made.start(None, "10.0.0.1", timeout_s=TIMEOUT_S))  # pyright: ignore[reportArgumentType]
    assert started == [("10.0.0.1", 1234, 0, 2), ("10.0.0.1", 1234, 1, 2)]
    yield made
    for actor in actors:
        ray.kill(actor)  # pyright: ignore[reportArgumentType] - ray types the proxy of an actor otherwise


def test_every_rank_is_called_and_the_first_one_answers(ranks: LearnerRanks):
    sent = ranks.send("add", 1, 2)
    assert ranks.call("add", "add", 3, 4) == (0, 7)
    assert ranks.call_all("add", "add", 5, 6) == [(0, 11), (1, 11)]
    assert ray.get(sent) == (0, 3)


def test_an_error_of_a_call_that_was_only_sent_is_raised_by_the_next_one(ranks: LearnerRanks):
    ranks.send("fail")
    with pytest.raises(LearnerError, match="not finite"):
        ranks.call("add", "add", 1, 2)


def test_ranks_that_fail_in_the_same_way_can_go_on(ranks: LearnerRanks):
    with pytest.raises(LearnerError, match="not finite"):
        ranks.call("learn", "fail")
    assert ranks.call("add", "add", 1, 2) == (0, 3)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("fail_alone", r"one rank of the learner failed, and the others cannot continue without it: no memory"),
        ("end", r"(?s)learner rank 1 ended, .*The last lines of learner rank 1 \(.*the last words"),
    ],
)
def test_a_rank_that_fails_alone_or_ends_ends_all_calls_at_once(ranks: LearnerRanks, method: str, message: str):
    started = time.monotonic()
    with pytest.raises(ActorDiedError, match=message):
        ranks.call("learn", method)
    assert time.monotonic() - started < TIMEOUT_S / 2
    started = time.monotonic()
    with pytest.raises(ActorDiedError, match=message):
        ranks.call("name its last step", "add", 1, 2)
    assert time.monotonic() - started < 5
