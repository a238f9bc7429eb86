"""Holds the CPUs and GPUs of a run in Ray, so that each actor gets exactly the share that was planned for it."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import ray
from ray._private.state import available_resources_per_node
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from rlkl.actors.calls import wait_all
from rlkl.errors import EnvironmentProblem
from rlkl.recipe.placement import Actor, Group, Node, Placement, nodes_for
from rlkl.system.machine import usable_cpus

logger = logging.getLogger(__name__)

_NODE = "ray.io/node-id"
"""The label of a node that Ray sets itself."""
_LEAVE_VISIBLE = "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"
"""With "0" Ray leaves CUDA_VISIBLE_DEVICES alone in an actor that reserves no GPU."""
_GRANTED_S = 5.0
"""Ray grants free room within milliseconds."""
_ASK_AGAIN_S = 1.0
_TRIES_A_WARNING = 10


class Reservation:
    """One Ray placement group with a bundle for each group of actors. Ray grants all of it or nothing.

    Two runs that start together therefore never hold each other up with half of their actors. Each bundle is bound to
    a node: a strategy of Ray would either pack the engines or spread the learner. Within a bundle, shares of a GPU are
    shares of the same GPU.
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
        self._group, nodes = _reserve(placement.groups, timeout_s)
        try:
            pairs = zip(placement.groups, nodes, strict=True)
            self.placement = Placement(groups=tuple(replace(group, node=node.name) for group, node in pairs))
            """The placement on the nodes that had room."""
            self._node_of = dict(enumerate(node.id for node in nodes))
            self._gpus_of: dict[int, list[str]] = {}
            """GPUs of the ranks by bundle, as `rank_order` was told."""
            found = sorted(set(self._node_of.values()))
            self._cores = dict.fromkeys(found, usable_cpus()) if own_ray else _cores(found, timeout_s)
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
        bundle = self._bundle_of[actor.role, actor.number]
        if actor.units == 0:
            # By itself Ray leaves all GPUs visible to an actor without one.
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(self._gpus_of.get(bundle, ()))
            environment[_LEAVE_VISIBLE] = "0"
        return {
            "num_cpus": actor.cpus,
            "num_gpus": actor.gpus,
            "scheduling_strategy": PlacementGroupSchedulingStrategy(
                self._group, placement_group_bundle_index=bundle, placement_group_capture_child_tasks=False
            ),
            "runtime_env": {"env_vars": environment},
        }

    def rank_order(self, seen: Mapping[Actor, Sequence[str]]) -> list[Actor]:
        """Sort the learner's actors by node and GPU, so that neighbouring ranks are close to each other.

        ``seen``: the GPUs that each actor sees; Ray chooses them when the actor starts. Engines that use them in turns
        must get their `options` afterwards.
        """
        for actor, gpus in seen.items():
            self._gpus_of.setdefault(self._bundle_of[actor.role, actor.number], []).extend(gpus)
        for gpus in self._gpus_of.values():
            gpus.sort(key=_by_number)
        return sorted(
            seen,
            key=lambda actor: (
                self._node_of[self._bundle_of[actor.role, actor.number]],
                [_by_number(gpu) for gpu in seen[actor]],
                actor.number,
            ),
        )

    def address(self, actor: Actor) -> str:
        """Return the address of the actor's node."""
        node = self._node_of[self._bundle_of[actor.role, actor.number]]
        return next(one["NodeManagerAddress"] for one in ray.nodes() if one["NodeID"] == node)

    def release(self) -> None:
        """Give everything back; whatever still runs there ends."""
        if ray.is_initialized():
            remove_placement_group(self._group)


def _reserve(groups: Sequence[Group], timeout_s: float) -> tuple[PlacementGroup, list[Node]]:
    """Wait until there is room for all groups at one time; return Ray's group and the node of each bundle.

    While there is none, nothing is asked of Ray, so another run that needs less can start.
    """
    bundles = [_amounts(group.cpus, group.gpus) for group in groups]
    end, tries = time.monotonic() + timeout_s, 0
    while True:
        free = _free_nodes()
        names = nodes_for(groups, list(free.values()))
        if names is not None:
            nodes = [free[name] for name in names]
            held = placement_group(bundles, strategy="PACK", bundle_label_selector=[{_NODE: node.id} for node in nodes])
            granted = False
            try:
                granted = held.wait(min(_GRANTED_S, max(end - time.monotonic(), 0.1)))
            finally:
                if not granted:  # another run was faster
                    remove_placement_group(held)
            if granted:
                return held, nodes
        wanted = ", ".join(f"{_total(bundles, name):g} {name}" for name in ("CPU", "GPU"))
        there = f"{sum(node.cpus for node in free.values()):g} CPU, {sum(node.gpus for node in free.values()):g} GPU"
        if time.monotonic() > end:
            raise EnvironmentProblem(
                f"the Ray cluster has had no room for this run for {timeout_s:g} s: it wants {wanted}, and {there} "
                "are free, perhaps on different nodes. Wait until other jobs have ended (ray list placement-groups "
                "shows what they hold), raise cluster.start_timeout_s, or lower rollout.workers, "
                "rollout.cpus_per_worker, rollout.gpus_per_worker, learner.ranks or learner.gpus"
            )
        if tries % _TRIES_A_WARNING == 1:  # the first time Ray may still count what has just been given back
            logger.warning("waiting for the cluster: %s wanted, %s free", wanted, there)
        tries += 1
        time.sleep(min(_ASK_AGAIN_S, max(end - time.monotonic(), 0.1)))


def cluster_nodes() -> list[Node]:
    """Return the living nodes of the connected cluster that can hold an actor, with all that they have."""
    found = [_node(node, node["Resources"]) for node in ray.nodes() if node["Alive"]]
    return [node for node in found if node.cpus or node.gpus]


def _free_nodes() -> dict[str, Node]:
    """Return the living nodes by name, with what nobody has reserved."""
    free = available_resources_per_node()
    found = [_node(node, free.get(node["NodeID"], {})) for node in ray.nodes() if node["Alive"]]
    return {node.name: node for node in found}


def _node(node: Mapping[str, Any], amounts: Mapping[str, float]) -> Node:
    return Node(
        name=f"node {node['NodeManagerAddress']} ({node['NodeID'][:6]})",
        id=node["NodeID"],
        cpus=amounts.get("CPU", 0.0),
        gpus=amounts.get("GPU", 0.0),
    )


def _by_number(gpu: str) -> tuple[int, str]:
    """Return a key that sorts GPU 10 after GPU 9; GPUs may also have names."""
    return (int(gpu), "") if gpu.isdecimal() else (-1, gpu)


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
