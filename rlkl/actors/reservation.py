"""Holds the CPUs and GPUs of a run in Ray, so that each actor gets exactly the share that was planned for it."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from rlkl.actors.calls import wait_all
from rlkl.errors import EnvironmentProblem
from rlkl.recipe.placement import Actor, Node, Placement
from rlkl.system.machine import usable_cpus

logger = logging.getLogger(__name__)

_ASK_AGAIN_S = 5.0


class Reservation:
    """One Ray placement group with a bundle for each group of actors. Ray grants all of it or nothing.

    Two runs that start together therefore never hold each other up with half of their actors. Within a bundle, shares
    of a GPU are shares of the same GPU.
    """

    def __init__(self, placement: Placement, *, own_ray: bool, timeout_s: float) -> None:
        """Wait until the cluster has everything free; raises `EnvironmentProblem` at the deadline.

        ``own_ray``: this process started Ray, so its limits are those of all actors.
        """
        self._bundle_of = {
            (actor.role, actor.number): bundle
            for bundle, group in enumerate(placement.groups)
            for actor in group.actors
        }
        bundles = [_amounts(group.cpus, group.gpus) for group in placement.groups]
        self._group: PlacementGroup = placement_group(bundles, strategy="PACK")
        try:
            self._wait(bundles, timeout_s)
            self._node_of: dict[int, str] = placement_group_table(self._group)["bundles_to_node_id"]
            nodes = sorted(set(self._node_of.values()))
            self._cores = dict.fromkeys(nodes, usable_cpus()) if own_ray else _cores(nodes, timeout_s)
        except BaseException:
            self.release()
            raise

    def cores(self, actor: Actor) -> int:
        """Return the cores of the actor's node, divided by the actors of its role there; at least 1.

        Rollout workers compute side by side, and the learner while they wait.
        """
        node = self._node_of[self._bundle_of[actor.role, actor.number]]
        sharing = sum(role == actor.role and self._node_of[at] == node for (role, _), at in self._bundle_of.items())
        return max(self._cores[node] // sharing, 1)

    def options(self, actor: Actor, *, threads: int | None = None) -> dict[str, Any]:
        """Return Ray's options for an actor: its reservation, and the environment that makes it keep to it."""
        environment = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
        if actor.units == 0:
            environment["CUDA_VISIBLE_DEVICES"] = ""  # by itself Ray leaves all GPUs visible to an actor without one
        return {
            "num_cpus": actor.cpus,
            "num_gpus": actor.gpus,
            "scheduling_strategy": PlacementGroupSchedulingStrategy(
                self._group, placement_group_bundle_index=self._bundle_of[actor.role, actor.number]
            ),
            "runtime_env": {"env_vars": environment},
        }

    def by_node(self, actors: Iterable[Actor]) -> list[Actor]:
        """Sort actors by the node that they run on, so that neighbours in the list are close to each other."""
        return sorted(
            actors, key=lambda actor: (self._node_of[self._bundle_of[actor.role, actor.number]], actor.number)
        )

    def address(self, actor: Actor) -> str:
        """Return the address of the actor's node."""
        node = self._node_of[self._bundle_of[actor.role, actor.number]]
        return next(one["NodeManagerAddress"] for one in ray.nodes() if one["NodeID"] == node)

    def release(self) -> None:
        """Give everything back; whatever still runs there ends."""
        if ray.is_initialized():
            remove_placement_group(self._group)

    def _wait(self, bundles: list[dict[str, float]], timeout_s: float) -> None:
        end = time.monotonic() + timeout_s
        while not self._group.wait(min(_ASK_AGAIN_S, max(end - time.monotonic(), 0.1))):
            wanted = ", ".join(f"{_total(bundles, name):g} {name}" for name in ("CPU", "GPU"))
            free = ray.available_resources()
            there = ", ".join(f"{free.get(name, 0.0):g} {name}" for name in ("CPU", "GPU"))
            if time.monotonic() > end:
                raise EnvironmentProblem(
                    f"the Ray cluster has had no room for this run for {timeout_s:g} s: it wants {wanted}, and {there} "
                    "are free, perhaps on different nodes. Wait until other jobs have ended (ray list placement-groups "
                    "shows what they hold), raise cluster.start_timeout_s, or lower rollout.workers, "
                    "rollout.cpus_per_worker, rollout.gpus_per_worker, learner.ranks or learner.gpus"
                )
            logger.warning("waiting for the cluster: %s wanted, %s free", wanted, there)


def cluster_nodes() -> list[Node]:
    """Return the living nodes of the connected cluster that can hold an actor."""
    nodes = [
        Node(
            name=f"node {node['NodeManagerAddress']} ({node['NodeID'][:6]})",
            cpus=node["Resources"].get("CPU", 0.0),
            gpus=int(node["Resources"].get("GPU", 0.0)),
        )
        for node in ray.nodes()
        if node["Alive"]
    ]
    return [node for node in nodes if node.cpus or node.gpus]


def _amounts(cpus: float, gpus: float) -> dict[str, float]:
    """Return a bundle; Ray refuses one without any resource."""
    return {name: amount for name, amount in (("CPU", cpus), ("GPU", gpus)) if amount} or {"CPU": 0.001}


def _total(bundles: list[dict[str, float]], name: str) -> float:
    return sum(bundle.get(name, 0.0) for bundle in bundles)


def _cores(nodes: list[str], timeout_s: float) -> dict[str, int]:
    """Ask each node how many cores its processes may use."""
    ask = ray.remote(usable_cpus)
    answers = wait_all(
        [
            ask.options(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote()
            for node in nodes
        ],
        who=[f"node {node[:6]}" for node in nodes],
        what="count its cores",
        timeout_s=timeout_s,
    )
    return dict(zip(nodes, answers, strict=True))
