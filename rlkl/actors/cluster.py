"""Connecting to Ray: the cluster that is there, or a local one of the run's own."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import ray
from ray._private import ray_constants, services
from ray._private import utils as ray_utils

from rlkl.actors.calls import short
from rlkl.errors import EnvironmentProblem
from rlkl.recipe import ClusterSection, Recipe
from rlkl.recipe.memory import estimate_memory
from rlkl.recipe.resolved_model import ResolvedModels
from rlkl.recipe.resources import place_on_machine
from rlkl.system.machine import private_folder, this_machine, usable_cpus

logger = logging.getLogger(__name__)

_LONGEST_TMPDIR = 20
"""Ray makes sockets some 80 characters below; the path of a socket has at most 107."""

_STARTS = 3
"""Starts of a local Ray: on a busy machine it misses its own limit of 30 seconds."""

_SHARED_MEMORY = Path("/dev/shm")

_KNOCK_S = 30.0
"""An open port answers at once; this is for slow networks."""


def connect(section: ClusterSection, *, cpus: int) -> bool:
    """Connect to ``cluster.address`` or RAY_ADDRESS, or start a local Ray with ``cpus``; True if it is our own."""
    if ray.is_initialized():
        return False
    with _own_sigterm():
        return _connect(section, cpus=cpus)


def _connect(section: ClusterSection, *, cpus: int) -> bool:
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
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
    # Ray keeps a record of each call, which grows through a run; only its dashboard shows them, and there is none.
    os.environ.setdefault("RAY_task_events_report_interval_ms", "0")
    folder = os.environ.get("RAY_TMPDIR") or str(_ray_folder())
    keep_token_private(Path.home())
    for left in range(_STARTS - 1, -1, -1):
        try:
            with _groups_of_their_own():
                ray.init(
                    address="local",
                    num_cpus=max(cpus, usable_cpus()),
                    include_dashboard=False,
                    _node_ip_address="127.0.0.1",
                    _temp_dir=folder,
                    **quiet,
                )
            break
        except Exception as error:  # Ray raises whatever its processes ended with
            ray.shutdown()
            if not left:
                raise EnvironmentProblem(
                    f"Ray does not start on this machine: {short(error)}. Its logs are in "
                    f"{folder}/session_latest/logs. If the machine is busy or short of memory, wait and try again"
                    f"{_small_shared_memory()}"
                ) from error
            logger.warning("Ray did not start (%s); it is started again", short(error))
    return True


def _small_shared_memory() -> str:
    """Return a hint if /dev/shm, where Ray keeps its objects, is small, as in a container; else nothing."""
    if not _SHARED_MEMORY.is_dir():
        return ""
    free = shutil.disk_usage(_SHARED_MEMORY).free / 2**30
    if free >= 1:
        return ""
    return f". {_SHARED_MEMORY} has {free:.2f} GiB free, too little for Ray's objects: docker run --shm-size=2g"


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keep this process's handler of SIGTERM. Ray's own would kill Ray first, and then the run with an error."""
    handler, setter = signal.getsignal(signal.SIGTERM), ray_utils.set_sigterm_handler
    ray_utils.set_sigterm_handler = lambda handler: None
    try:
        yield
    finally:
        ray_utils.set_sigterm_handler = setter
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # Ray's core has replaced it, too


@contextmanager
def _groups_of_their_own() -> Iterator[None]:
    """Start each of Ray's processes in a process group of its own while the block runs.

    `timeout` and job schedulers send SIGTERM to the run's whole group. Ray would end at once, and the run could not
    finish its step and save. Ray's processes still end with this one (PR_SET_PDEATHSIG). If the block raises, those
    that have been started are ended: Ray itself leaves them.
    """
    popen = services.ConsolePopen
    started: list[subprocess.Popen[bytes]] = []

    def start(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
        started.append(popen(*arguments, process_group=0, **options))
        return started[-1]

    services.ConsolePopen = start
    try:
        yield
    except BaseException:
        for process in started:
            process.kill()
            process.wait()
        raise
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


def keep_token_private(home: Path) -> None:
    """Let this user alone read the token that a local Ray asks every client for: who has it can run code as this user.

    Ray keeps the token in ``.ray/auth_token`` of the home folder, and by itself makes it readable for everybody. Does
    nothing if the user keeps the token elsewhere.
    """
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return
    path = home / ".ray" / "auth_token"
    path.parent.mkdir(mode=0o700, exist_ok=True)
    if path.is_file():
        path.chmod(0o600)
        return
    handle, aside = tempfile.mkstemp(dir=path.parent, prefix=".auth_token")  # mode 0600
    with os.fdopen(handle, "w") as file:
        file.write(secrets.token_hex(32))
    try:
        with suppress(FileExistsError):  # another run was quicker
            os.link(aside, path)
    except OSError:  # this file system has no hard links
        os.replace(aside, path)
    else:
        os.unlink(aside)


def uses_own_ray(section: ClusterSection) -> bool:
    """Return whether `connect` would start a Ray on this machine."""
    return not (ray.is_initialized() or section.resolved_address)


def check_own_machine(recipe: Recipe, models: ResolvedModels) -> None:
    """Raise `EnvironmentProblem` if the run would start a Ray of its own here and this machine is too small for it."""
    if uses_own_ray(recipe.cluster):
        memory = estimate_memory(recipe, models.policy.path, models.frozen_paths.values())
        place_on_machine(recipe, this_machine(), memory)
