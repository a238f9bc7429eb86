"""Connecting to Ray: the cluster that is there, or a local one of the run's own."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass

import ray
from ray._private import ray_constants

from rlkl.errors import EnvironmentProblem
from rlkl.recipe import ClusterSection, Recipe
from rlkl.recipe.resources import gpu_shares, reward_needs

logger = logging.getLogger(__name__)

_KNOCK_S = 30.0
"""An open port answers at once; this is for slow networks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What the actors of a run reserve."""

    worker_cpus: int
    worker_gpus: float
    learner_gpus: float
    workers: int
    reward_cpus: float = 0.0
    """Of all rewards in mode ``actor``."""
    reward_gpus: float = 0.0

    @property
    def cpus(self) -> float:
        return self.workers * self.worker_cpus + 1 + self.reward_cpus

    @property
    def gpus(self) -> float:
        return self.workers * self.worker_gpus + self.learner_gpus + self.reward_gpus


def connect(section: ClusterSection, *, cpus: int) -> bool:
    """Connect to ``cluster.address`` or RAY_ADDRESS, or start a local Ray with ``cpus``; True if it is our own."""
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    if ray.is_initialized():
        return False
    address = section.address or os.environ.get("RAY_ADDRESS")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if address:
        try:
            _knock(address, timeout_s=section.start_timeout_s)
            ray.init(address=address, **quiet)
        except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: an answer that is not Ray's
            raise EnvironmentProblem(
                f"no Ray cluster answers at {address!r} ({error}). Start one (launch/local_cluster.sh start), correct "
                "cluster.address or RAY_ADDRESS, or unset them to use a local Ray"
            ) from error
        return False
    _stay_on_loopback()
    ray.init(
        address="local",
        num_cpus=max(cpus, os.cpu_count() or 1),
        include_dashboard=False,
        _node_ip_address="127.0.0.1",
        **quiet,
    )
    return True


def _knock(address: str, *, timeout_s: float) -> None:
    """Raise `OSError` where nothing listens: Ray itself would go on trying for ever."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdecimal() and "/" not in host:  # "auto" and the like are for Ray to read
        socket.create_connection((host.strip("[]"), int(port)), timeout=min(timeout_s, _KNOCK_S)).close()


def _stay_on_loopback() -> None:
    """Keep a local Ray on 127.0.0.1: by default it replaces a loopback address by the machine's own, and calls home."""
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # for the processes that Ray starts
    ray_constants.ENABLE_RAY_CLUSTER = False  # for this one, where Ray has read the variable already
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


def needs_of(recipe: Recipe) -> Needs:
    """What the actors reserve in the connected cluster."""
    shares = gpu_shares(recipe, ray.cluster_resources().get("GPU", 0.0))
    rewards = reward_needs(recipe)
    return Needs(
        workers=recipe.rollout.workers,
        worker_cpus=recipe.rollout.cpus_per_worker,
        worker_gpus=shares.worker,
        learner_gpus=shares.learner,
        reward_cpus=rewards.cpus,
        reward_gpus=rewards.gpus,
    )


def check_room(needs: Needs, *, timeout_s: float) -> None:
    """Wait until the cluster has free what the actors need.

    Raises `EnvironmentProblem` at once when it can never fit, and at the deadline when others hold it.
    """
    end = time.monotonic() + timeout_s
    wanted = {"CPU": needs.cpus, "GPU": needs.gpus}
    while True:
        whole, free = ray.cluster_resources(), ray.available_resources()
        missing = {name: amount for name, amount in wanted.items() if amount > free.get(name, 0.0)}
        if not missing:
            return
        never = {name: amount for name, amount in wanted.items() if amount > whole.get(name, 0.0)}
        if never or time.monotonic() > end:
            raise EnvironmentProblem(_no_room(needs, never or missing, whole if never else free, bool(never)))
        logger.warning("waiting for the cluster: %s wanted, %s free", missing, {n: free.get(n, 0.0) for n in missing})
        time.sleep(min(5.0, timeout_s))


def _no_room(needs: Needs, missing: dict[str, float], there: Mapping[str, float], never: bool) -> str:
    lacks = ", ".join(
        f"{amount:g} {name} (it has {there.get(name, 0.0):g}{'' if never else ' free'})"
        for name, amount in missing.items()
    )
    has_rewards = needs.reward_cpus or needs.reward_gpus
    rewards = f", reward actors ({needs.reward_cpus:g} CPU, {needs.reward_gpus:g} GPU)" if has_rewards else ""
    return (
        f"the Ray cluster cannot place {needs.workers} rollout workers ({needs.worker_cpus} CPU, "
        f"{needs.worker_gpus:g} GPU each){rewards} and the learner (1 CPU, {needs.learner_gpus:g} GPU): the run needs "
        f"{lacks}. Lower rollout.workers, rollout.cpus_per_worker, rollout.gpus_per_worker or learner.gpus (fractions "
        "share a GPU), or use a larger cluster"
    )
