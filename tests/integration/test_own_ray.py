"""The Ray that a run starts for itself."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import ray

from rlkl.actors.cluster import connect
from rlkl.recipe import ClusterSection


@pytest.fixture
def own_ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("RAY_worker_niceness", raising=False)
    assert connect(ClusterSection(), cpus=1)
    yield
    ray.shutdown()


def test_actors_run_at_the_priority_of_the_run(own_ray: None):
    """At Ray's default of 15, another busy program takes nearly all of their CPU time."""

    @ray.remote
    def niceness() -> int:
        return os.nice(0)

    assert ray.get(niceness.remote()) == os.nice(0)
