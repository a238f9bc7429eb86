"""Connecting to Ray: the cluster that is there, or a local one of the run's own."""

from __future__ import annotations

import logging
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import ray
from ray._private import ray_constants, services

from rlkl.errors import EnvironmentProblem
from rlkl.recipe import ClusterSection, Recipe
from rlkl.recipe.memory import estimate_memory
from rlkl.recipe.resolved_model import ResolvedModels
from rlkl.recipe.resources import place_on_machine
from rlkl.system.machine import private_folder, this_machine, usable_cpus

_LONGEST_TMPDIR = 20
"""Ray makes sockets some 80 characters below; the path of a socket has at most 107."""

_KNOCK_S = 30.0
"""An open port answers at once; this is for slow networks."""


def connect(section: ClusterSection, *, cpus: int) -> bool:
    """Connect to ``cluster.address`` or RAY_ADDRESS, or start a local Ray with ``cpus``; True if it is our own."""
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    if ray.is_initialized():
        return False
    address = section.resolved_address
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
    # Ray runs its workers at nice 15, where any other program of the machine takes nearly all of their CPU time.
    os.environ.setdefault("RAY_worker_niceness", "0")
    with _groups_of_their_own():
        ray.init(
            address="local",
            num_cpus=max(cpus, usable_cpus()),
            include_dashboard=False,
            _node_ip_address="127.0.0.1",
            _temp_dir=os.environ.get("RAY_TMPDIR") or str(_ray_folder()),
            **quiet,
        )
    return True


@contextmanager
def _groups_of_their_own() -> Iterator[None]:
    """Start each of Ray's processes in a process group of its own while the block runs.

    `timeout` and job schedulers send SIGTERM to the run's whole group. Ray would end at once, and the run could not
    finish its step and save. Ray's processes still end with this one (PR_SET_PDEATHSIG).
    """
    popen = services.ConsolePopen
    services.ConsolePopen = partial(popen, process_group=0)
    try:
        yield
    finally:
        services.ConsolePopen = popen


def _knock(address: str, *, timeout_s: float) -> None:
    """Raise `OSError` where nothing listens: Ray itself would go on trying for ever."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdecimal() and "/" not in host:  # "auto" and the like are for Ray to read
        socket.create_connection((host.strip("[]"), int(port)), timeout=min(timeout_s, _KNOCK_S)).close()


def _ray_folder() -> Path:
    """Return the folder for Ray's sockets and logs: its own default, /tmp/ray, may belong to another user.

    Ray opens its folder to everybody, so it lies in one that stays closed.
    """
    temporary = Path(tempfile.gettempdir())
    return private_folder("rlkl", temporary if len(str(temporary)) <= _LONGEST_TMPDIR else Path("/tmp")) / "ray"


def _stay_on_loopback() -> None:
    """Keep a local Ray on 127.0.0.1: by default it replaces a loopback address by the machine's own, and calls home."""
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # for the processes that Ray starts
    ray_constants.ENABLE_RAY_CLUSTER = False  # for this one, where Ray has read the variable already
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


def uses_own_ray(section: ClusterSection) -> bool:
    """Return whether `connect` would start a Ray on this machine."""
    return not (ray.is_initialized() or section.resolved_address)


def check_own_machine(recipe: Recipe, models: ResolvedModels) -> None:
    """Raise `EnvironmentProblem` if the run would start a Ray of its own here and this machine is too small for it."""
    if uses_own_ray(recipe.cluster):
        memory = estimate_memory(recipe, models.policy.path, models.frozen_paths.values())
        place_on_machine(recipe, this_machine(), memory)
