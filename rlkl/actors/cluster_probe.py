"""Ask every node of a Ray cluster for `rlkl doctor --cluster`. Waits have deadlines, and errors name the node."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rlkl.actors.calls import wait
from rlkl.actors.cluster import connect
from rlkl.actors.node_probe import NodeProbe, Timing
from rlkl.errors import DeadlineError, EnvironmentProblem, RlklError
from rlkl.learner.ranks import Rendezvous
from rlkl.learner.sharing import token_in
from rlkl.recipe import ClusterSection
from rlkl.system.node import NodeReport

_HEAD = "node:__internal_head__"
"""The resource that Ray gives to the head node."""
_CLOCK_TRIES = 5
_MORE_ERRORS_S = 5.0
"""After a first error, other nodes have so long to report theirs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """One living node, as Ray lists it."""

    name: str
    node_id: str
    address: str
    is_head: bool
    cpus: float
    gpus: float
    """CPUs and GPUs that Ray gives to actors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Offset:
    """Seconds by which a node's clock is ahead of this process's, known to within ``error_s``."""

    seconds: float
    error_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Seconds of the slowest process for a tensor of ``mib`` MiB."""

    backend: str
    processes: int
    mib: int
    timing: Timing

    def gb_per_s(self, seconds: float) -> float:
        """Return the size of the tensor by the seconds."""
        return self.mib * 2**20 / 1e9 / seconds


class ClusterProbe:
    """Connects and starts an actor on each node; `close` ends them, and Ray too if it was started here."""

    def __init__(self, address: str | None, *, timeout_s: float) -> None:
        """Raise `EnvironmentProblem` if no cluster answers at ``address``, RAY_ADDRESS, or here."""
        self._timeout_s = timeout_s
        self.own_ray = connect(ClusterSection(address=address), cpus=1)
        nodes = ray.nodes()
        self.sites = sorted(map(_site, (one for one in nodes if one["Alive"])), key=lambda site: not site.is_head)
        self.gone = [_name(one) for one in nodes if not one["Alive"]]
        self._actors = {site: self._start(site) for site in self.sites}

    def reports(self) -> dict[Site, NodeReport | RlklError]:
        """Ask every node to describe itself. A node that cannot has its error instead."""
        return self._ask({site: actor.report.remote() for site, actor in self._actors.items()}, "describe itself")

    def offsets(self, sites: Sequence[Site]) -> dict[Site, Offset]:
        """Compare the clocks of nodes with this process's. The quickest of a few answers counts."""
        return {site: min(self._offsets(site), key=lambda offset: offset.error_s) for site in sites}

    def check_shared(self, run_dir: Path, sites: Sequence[Site]) -> dict[Site, str]:
        """Return for each node why it does not share the folder; empty if a file travels both ways."""
        return {site: self._why_not_shared(run_dir, site) for site in sites}

    def speeds(self, sites: Sequence[Site], *, gpus: int, mib: int) -> list[Speed]:
        """Time collectives between nodes, or between two processes of the only node: gloo, and nccl on GPUs.

        ``gpus``: GPUs that every node has. Raises an `RlklError` that names the node that failed or was late.
        """
        doubles = [self._start(sites[0])] if len(sites) == 1 else []
        try:
            return self._speeds(sites, doubles, gpus=gpus, mib=mib)
        finally:
            for actor in doubles:
                ray.kill(actor)

    def close(self) -> None:
        """End the actors; safe to call twice."""
        for actor in self._actors.values():
            ray.kill(actor)
        self._actors = {}
        if self.own_ray and ray.is_initialized():
            ray.shutdown()

    def _speeds(self, sites: Sequence[Site], doubles: Sequence[Any], *, gpus: int, mib: int) -> list[Speed]:
        actors = [*(self._actors[site] for site in sites), *doubles]
        names = [site.name for site in sites] + [f"{sites[0].name}, second process" for _ in doubles]
        size, host = len(actors), sites[0].address
        uses_gpus = gpus > len(doubles)
        cards = [(number if doubles else 0) if uses_gpus else None for number in range(size)]
        port = self._all(names[:1], [actors[0].open_store.remote(host, size, self._timeout_s)], "open a port")[0]
        reaching = [actor.reach.remote(host, port, self._timeout_s) for actor in actors[1:]]
        self._all(names[1:], reaching, f"connect to {host}:{port}")
        places = [
            Rendezvous(host=host, port=port, rank=rank, size=size, timeout_s=self._timeout_s) for rank in range(size)
        ]
        joining = [actor.join.remote(place, gpu) for actor, place, gpu in zip(actors, places, cards, strict=True)]
        self._all(names, joining, "join the process group of all nodes")
        speeds = []
        for backend, devices in (("gloo", [None] * size), ("nccl", cards)):
            if backend == "gloo" or uses_gpus:
                calls = [actor.measure.remote(mib, gpu) for actor, gpu in zip(actors, devices, strict=True)]
                timings = self._all(names, calls, f"exchange a tensor by {backend}")
                speeds.append(Speed(backend=backend, processes=size, mib=mib, timing=_slowest(timings)))
        self._all(names, [actor.leave.remote() for actor in actors], "leave the process group")
        return speeds

    def _start(self, site: Site) -> Any:
        return (
            ray.remote(NodeProbe)
            .options(
                num_cpus=0,
                num_gpus=0,
                scheduling_strategy=NodeAffinitySchedulingStrategy(site.node_id, soft=False),
                # By default Ray may hide all GPUs from an actor that reserves none.
                runtime_env={"env_vars": {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}},
            )
            .remote()
        )

    def _ask(self, refs: Mapping[Site, Any], what: str) -> dict[Site, Any]:
        """Return each node's answer, or its error, under one deadline."""
        end = time.monotonic() + self._timeout_s
        answers: dict[Site, Any] = {}
        for site, ref in refs.items():
            try:
                answers[site] = self._answer(ref, site.name, what, until=end)
            except RlklError as error:
                answers[site] = error
        return answers

    def _all(self, names: Sequence[str], refs: Sequence[Any], what: str) -> list[Any]:
        """Return all answers; raise `EnvironmentProblem` with the errors of all nodes that failed or were late.

        If one node fails in a collective call, the others wait for it until their own deadline. So this stops waiting
        soon after the first error.
        """
        end = time.monotonic() + self._timeout_s
        answers, errors, name_of = {}, [], dict(zip(refs, names, strict=True))
        pending = list(refs)
        while pending:
            done, _ = ray.wait(pending, timeout=max(end - time.monotonic(), 0.0))
            for ref in done or list(pending):
                pending.remove(ref)
                try:
                    answers[ref] = self._answer(ref, name_of[ref], what, until=end)
                except RlklError as error:
                    errors.append(str(error))
                    end = min(end, time.monotonic() + _MORE_ERRORS_S)
        if errors:
            raise EnvironmentProblem("; ".join(errors))
        return [answers[ref] for ref in refs]

    def _answer(self, ref: Any, name: str, what: str, *, until: float) -> Any:
        try:
            return wait(ref, who=name, what=what, timeout_s=max(until - time.monotonic(), 0.1))
        except DeadlineError:
            raise DeadlineError(f"{name} did not {what} within {self._timeout_s:g} s") from None
        except EnvironmentProblem as error:
            raise EnvironmentProblem(f"{name}: {error}") from error

    def _offsets(self, site: Site) -> list[Offset]:
        found = []
        for _ in range(_CLOCK_TRIES):
            asked = time.time()
            ref = self._actors[site].clock.remote()
            there = self._answer(ref, site.name, "tell its time", until=time.monotonic() + self._timeout_s)
            answered = time.time()
            found.append(Offset(seconds=there - (asked + answered) / 2, error_s=(answered - asked) / 2))
        return found

    def _why_not_shared(self, run_dir: Path, site: Site) -> str:
        with token_in(run_dir) as token:
            try:
                ref, end = self._actors[site].look.remote(token), time.monotonic() + self._timeout_s
                token.check(self._answer(ref, site.name, "look for a file", until=end), f"node {site.name}")
            except RlklError as error:
                return str(error)
        return ""


def _slowest(timings: Sequence[Timing]) -> Timing:
    return Timing(
        all_reduce_s=max((one.all_reduce_s for one in timings), default=math.nan),
        broadcast_s=max((one.broadcast_s for one in timings), default=math.nan),
    )


def _name(node: Mapping[str, Any]) -> str:
    return f"{node['NodeManagerAddress']} ({node['NodeID'][:6]})"


def _site(node: Mapping[str, Any]) -> Site:
    resources = node["Resources"]
    return Site(
        name=_name(node),
        node_id=node["NodeID"],
        address=node["NodeManagerAddress"],
        is_head=_HEAD in resources,
        cpus=resources.get("CPU", 0.0),
        gpus=resources.get("GPU", 0.0),
    )
