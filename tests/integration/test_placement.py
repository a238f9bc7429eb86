"""Real actors with the planned shares, on a Ray of several nodes whose GPUs are only numbers."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

from rlkl.actors.reservation import Reservation, cluster_nodes
from rlkl.errors import EnvironmentProblem
from rlkl.recipe import Recipe
from rlkl.recipe.placement import LEARNER, WORKER, Actor, Placement, place
from rlkl.system.machine import usable_cpus

DEADLINE_S = 240.0


class Observer:
    """Stands in for an engine or a learner, and reports where it runs."""

    def report(self) -> tuple[str, str, int, int]:
        return (
            ray.get_runtime_context().get_node_id(),
            os.environ.get("CUDA_VISIBLE_DEVICES", "unset"),
            int(os.environ["OMP_NUM_THREADS"]),
            usable_cpus(),
        )

    def has_cuda(self) -> bool:
        import torch

        return torch.cuda.is_available()


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """Three nodes, with no, one and two GPUs. The GPU nodes may use a single core."""
    cores = os.sched_getaffinity(0)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        environment.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        environment.delenv("RAY_ADDRESS", raising=False)
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 3, "num_gpus": 0, "include_dashboard": False})
        try:
            os.sched_setaffinity(0, {min(cores)})
            made.add_node(num_cpus=8, num_gpus=1)
            made.add_node(num_cpus=8, num_gpus=2)
            os.sched_setaffinity(0, cores)
            ray.init(address=made.address, log_to_driver=False)
            made.wait_for_nodes()
            yield
        finally:
            os.sched_setaffinity(0, cores)
            ray.shutdown()
            made.shutdown()


def recipe(**sections: Any) -> Recipe:
    return Recipe.model_validate({"model": {"path": "m"}, "data": {"source": "d"}, **sections})


def start(placement: Placement) -> tuple[Reservation, dict[Actor, Any]]:
    reservation = Reservation(placement, own_ray=False, timeout_s=DEADLINE_S)
    return reservation, {
        actor: ray.remote(Observer).options(**reservation.options(actor, threads=reservation.cores(actor))).remote()
        for actor in placement.actors
    }


def assert_placed_as_planned(placement: Placement) -> None:
    """Start all actors: they see the same GPU exactly if they share a group, and divide the cores of their node."""
    reservation, actors = start(placement)
    try:
        reports = dict(
            zip(actors, ray.get([a.report.remote() for a in actors.values()], timeout=DEADLINE_S), strict=True)
        )
    finally:
        for handle in actors.values():
            ray.kill(handle)
        reservation.release()
    seen: dict[tuple[str, str], set[Actor]] = defaultdict(set)
    for actor, (node, visible, threads, cores) in reports.items():
        sharing = sum(other.role == actor.role and reports[other][0] == node for other in reports)
        assert threads == max(cores // sharing, 1), actor
        if actor.gpus:
            assert visible.isdecimal(), (actor, visible)
            seen[node, visible].add(actor)
        else:
            assert visible == "", (actor, visible)
    groups = [set(group.actors) for group in placement.groups if group.devices]
    assert sorted(map(len, seen.values())) == sorted(map(len, groups))
    assert all(held in groups for held in seen.values())


def test_actors_start_with_the_planned_shares_and_threads() -> None:
    nodes = cluster_nodes()
    assert sorted((node.cpus, node.gpus) for node in nodes) == [(3, 0), (8, 1), (8, 2)]
    on_one = place(recipe(rollout={"workers": 2}), [node for node in nodes if node.gpus == 1])
    assert on_one.gpus_of(LEARNER) == 0.3333
    assert_placed_as_planned(on_one)

    rewards = [{"function": "f.py:f", "mode": "actor", "gpus": 0.5}]
    assert_placed_as_planned(place(recipe(rollout={"workers": 3}, rewards=rewards), nodes))  # by sums: 0.625 each
    on_whole_gpus = place(recipe(rollout={"workers": 2}), nodes)
    assert on_whole_gpus.gpus_of(WORKER) == 1
    assert_placed_as_planned(on_whole_gpus)

    without = place(recipe(rollout={"workers": 2, "gpus_per_worker": 0}, learner={"device": "cpu"}), nodes)
    assert_placed_as_planned(without)


def test_ranks_are_numbered_by_node_and_gpu_and_each_engine_sees_the_gpu_of_its_rank() -> None:
    """Engines take turns on the GPUs that Ray has given to the ranks, and reserve none."""
    run = recipe(rollout={"workers": 3, "placement": "colocated"}, learner={"ranks": 3})
    placement = place(run, cluster_nodes())
    reservation = Reservation(placement, own_ray=False, timeout_s=DEADLINE_S)
    handles: list[Any] = []

    def report(of: list[Actor]) -> dict[Actor, tuple[str, str, int, int]]:
        started = [ray.remote(Observer).options(**reservation.options(one, threads=1)).remote() for one in of]
        handles.extend(started)
        return dict(zip(of, ray.get([handle.report.remote() for handle in started], timeout=DEADLINE_S), strict=True))

    try:
        ranks = report([actor for actor in placement.actors if actor.role == LEARNER])
        ordered = reservation.rank_order({actor: seen[1].split(",") for actor, seen in ranks.items()})
        engines = report([actor for actor in placement.actors if actor.role == WORKER])
    finally:
        for handle in handles:
            ray.kill(handle)
        reservation.release()
    places = [(ranks[actor][0], int(ranks[actor][1])) for actor in ordered]
    assert places == sorted(places)
    assert sorted(gpu for _, gpu in places) == [0, 0, 1]
    for group in placement.groups:
        rank, engine = group.actors
        assert engines[engine][:2] == ranks[rank][:2], (rank, engine)


def test_engines_are_spread_and_ranks_are_packed_by_ray_too() -> None:
    placement = place(recipe(rollout={"workers": 1}, learner={"ranks": 2}), cluster_nodes())
    reservation, actors = start(placement)
    reports = ray.get([handle.report.remote() for handle in actors.values()], timeout=DEADLINE_S)
    nodes = {actor.name: seen[0] for actor, seen in zip(actors, reports, strict=True)}
    assert nodes["learner"] == nodes["learner rank 1"] != nodes["rollout worker 0"]
    planned = {group.node for group in reservation.placement.groups if group.count(LEARNER)}
    assert len(planned) == 1
    for handle in actors.values():
        ray.kill(handle)
    reservation.release()


def test_children_of_an_actor_are_not_bound_to_its_part_of_the_reservation() -> None:
    placement = place(recipe(rollout={"gpus_per_worker": 0}, learner={"gpus": 0}), cluster_nodes())
    reservation = Reservation(placement, own_ray=False, timeout_s=DEADLINE_S)
    options = reservation.options(placement.actors[0])
    assert options["scheduling_strategy"].placement_group_capture_child_tasks is False
    reservation.release()


@pytest.mark.parametrize(
    "sections",
    [
        {"rollout": {"tensor_parallel": 3}},
        {"learner": {"ranks": 4}},
        {"rollout": {"cpus_per_worker": 9}},
        {"rollout": {"placement": "colocated", "workers": 2}},
    ],
)
def test_what_no_nodes_can_hold_is_refused_before_anything_is_reserved(sections: dict[str, Any]) -> None:
    with pytest.raises(EnvironmentProblem):
        place(recipe(**sections), cluster_nodes())


def test_gpus_that_another_run_holds_are_waited_for_and_no_actor_sees_them() -> None:
    whole = place(recipe(rollout={"workers": 2}), cluster_nodes())
    held = Reservation(whole, own_ray=False, timeout_s=DEADLINE_S)
    with pytest.raises(
        EnvironmentProblem, match=r"no room for this run for 10 s: it wants 3 CPU, 3 GPU, and .* CPU, 0 GPU are free"
    ):
        Reservation(whole, own_ray=False, timeout_s=10.0)  # Ray may count the GPUs as free for some seconds
    without = place(recipe(rollout={"gpus_per_worker": 0}, learner={"gpus": 0}), cluster_nodes())
    reservation, actors = start(without)
    assert ray.get([actor.has_cuda.remote() for actor in actors.values()], timeout=DEADLINE_S) == [False, False]
    reservation.release()
    held.release()
    Reservation(whole, own_ray=False, timeout_s=DEADLINE_S).release()
