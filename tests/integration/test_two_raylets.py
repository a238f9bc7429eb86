"""A run over two nodes: two raylets of one machine, each with an object store of its own."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray._private.state import actors
from ray.cluster_utils import Cluster

import rlkl
from tests.integration.runs import make_recipe, untimed
from tests.integration.test_sharded_training import STEPS

WORKER_CPUS = 3


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """One node has room for two ranks and not for the worker; the other for the worker alone."""
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "num_gpus": 0, "include_dashboard": False})
    try:
        made.add_node(num_cpus=WORKER_CPUS, num_gpus=0)
        made.wait_for_nodes()
        yield made
    finally:
        ray.shutdown()
        made.shutdown()


def nodes_by_class() -> dict[str, list[str]]:
    """The nodes of all actors that this cluster has had, by the name of their class."""
    found: dict[str, list[str]] = {}
    for actor in actors().values():
        found.setdefault(actor["ActorClassName"], []).append(actor["Address"]["NodeID"])
    return found


def test_ranks_on_one_node_train_with_a_worker_on_the_other(
    cluster: Cluster, tmp_path: Path, untied_model: Path, caplog: pytest.LogCaptureFixture
):
    sections = {
        "steps": STEPS,
        "rollout": {"cpus_per_worker": WORKER_CPUS, "threads": 1},
        "learner": {"ranks": 2, "threads": 1, "micro_batch_tokens": 128},
    }
    apart = make_recipe(tmp_path / "apart", untied_model, **sections, cluster={"address": cluster.address})
    with caplog.at_level(logging.INFO, logger="rlkl.actors.hands"):
        done = rlkl.train(apart)

    found = nodes_by_class()
    (worker_node,) = found["RolloutWorker"]
    rank_nodes = set(found["LearnerWorker"])
    assert len(found["LearnerWorker"]) == 2
    assert len(rank_nodes) == 1
    assert worker_node not in rank_nodes
    lines = [record.getMessage() for record in caplog.records if "without a GPU" in record.getMessage()]
    assert sorted(line.partition(": ")[2] for line in lines) == ["learner, learner rank 1", "rollout worker 0"]

    records = untimed(done.run_dir)
    assert (done.status, len(records)) == ("done", STEPS)
    assert all(record["weights/verified"] == 1 for record in records)
    assert max(record["rollout/mismatch_max"] for record in records) < 1e-4
    assert (done.run_dir / "policy" / "config.json").is_file()

    ray.shutdown()
    alone = make_recipe(tmp_path / "alone", untied_model, **sections)
    assert untimed(rlkl.train(alone).run_dir) == records, "the nodes changed the numbers"
