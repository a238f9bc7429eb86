"""Cases: the machine, its disk, the cluster."""

from __future__ import annotations

import errno
import os
import shutil
import socket
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rlkl.actors.cluster import connect
from rlkl.recipe import ClusterSection
from rlkl.recipe.run_lock import lock_run_dir
from rlkl.training.checkpoint import Checkpoints, LoopState
from tests.run_folders import write_run
from tests.unit.badinput.case import HERE, Case, Place
from tests.unit.badinput.checkpoints import _stopped

Usage = namedtuple("Usage", "total used free")
STATE = LoopState(
    step=3, position=6, run_id="a", reward_fingerprints={}, data_fingerprint="d", recipe={}, fingerprints={}
)


def _failing(number: int, method: str, name: str | None) -> Callable[[Place], object]:
    """Return what lets a method of `Path` fail for files of this name, as the system does; None: for each."""

    def make(place: Place) -> None:
        true = getattr(Path, method)

        def fails(path: Path, *arguments: Any, **options: Any) -> Any:
            if name is None or path.name == name:
                raise OSError(number, os.strerror(number), str(path))
            return true(path, *arguments, **options)

        place.patch.setattr(Path, method, fails)

    return make


def _during_the_run(number: int) -> Callable[[Place], object]:
    """Return what lets a run fail as a write to an open file does: the error names no file."""

    def make(place: Place) -> None:
        def fails(*_: object) -> None:
            raise OSError(number, os.strerror(number))

        place.patch.setattr("rlkl.training.setup._run", fails)

    return make


def _full_score(place: Place) -> None:
    place.rows({"prompt": "1+1=", "completion": "2", "answer": "2"})
    _failing(errno.ENOSPC, "open", "scores.jsonl")(place)


def _save(place: Place) -> None:
    with Checkpoints(place.here / "run", keep=1).writing(STATE) as draft:
        (draft.folder / "learner.pt").write_text("moments")


def _used_by_another(place: Place) -> None:
    (place.here / "run").mkdir()
    place.held.enter_context(lock_run_dir(place.here / "run"))


def _resumed_elsewhere(place: Place) -> None:
    place.held.enter_context(lock_run_dir(place.here / "run"))


def _read_only(place: Place) -> None:
    (place.here / "shared").mkdir()
    allowed = os.access
    place.patch.setattr(os, "access", lambda path, mode: Path(path).name != "shared" and allowed(path, mode))


def _connect_to_nothing(place: Place) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: refused at once
        place.patch.setenv("RAY_ADDRESS", f"127.0.0.1:{taken.getsockname()[1]}")
        connect(ClusterSection(), cpus=1)


def _connect_to_another_program(place: Place) -> None:
    def no_ray(*_: object, **__: object) -> None:
        raise RuntimeError("Failed to connect to GCS")

    place.patch.setattr("ray.init", no_ray)  # the true one tries for a minute
    with socket.create_server(("127.0.0.1", 0)) as server:
        connect(ClusterSection(address=f"127.0.0.1:{server.getsockname()[1]}"), cpus=1)


def _start_ray(place: Place) -> None:
    def fails(*_: object, **__: object) -> None:
        raise ValueError("The configured object store size exceeds /dev/shm size")

    place.patch.setattr("ray.init", fails)
    connect(ClusterSection(), cpus=1)


def _small_shared_memory(place: Place) -> None:
    usage = shutil.disk_usage
    small = Usage(2**26, 0, 2**26)  # what docker gives
    place.patch.setattr(shutil, "disk_usage", lambda path: small if str(path) == "/dev/shm" else usage(path))


def _without_token(place: Place) -> None:
    from huggingface_hub.errors import LocalTokenNotFoundError

    def whoami(*_: object) -> None:
        raise LocalTokenNotFoundError("no token")

    write_run(place.here / "old")
    place.write("old/policy/model.safetensors", "weights")
    place.patch.setattr("huggingface_hub.HfApi.whoami", whoami)


CASES = [
    Case(
        wrong="The disk is full when a checkpoint is written",
        run=_save,
        make=_failing(errno.ENOSPC, "write_text", "learner.pt"),
        names=f"the checkpoint {HERE}/run/checkpoints/step_000003 cannot be written ([Errno 28] No space left",
        way="Free room on that disk",
        exit=1,
        leaves=True,
    ),
    Case(
        wrong="The disk is full when a run records its metrics",
        run="train r.yaml",
        make=_during_the_run(errno.ENOSPC),
        names="No space left on device",
        way="Free room on that disk, or write to another one",
        exit=1,
        leaves=True,
    ),
    Case(
        wrong="The disk is full when `rlkl score` writes its file",
        run="score --reward my.py:right --data rows.jsonl --out scores.jsonl",
        make=_full_score,
        names="scores.jsonl: No space left on device",
        way="Free room on that disk, or write to another one",
        exit=1,
    ),
    Case(
        wrong="Too many open files",
        run="train r.yaml",
        make=_during_the_run(errno.EMFILE),
        names="Too many open files",
        way="ulimit -n 65536",
        exit=1,
        leaves=True,
    ),
    Case(
        wrong="The disk is read-only when a run makes its folder",
        run="train r.yaml",
        make=_failing(errno.EROFS, "mkdir", "run"),
        names="the run folder run cannot be made ([Errno 30] Read-only file system",
        way="choose another with run.dir",
    ),
    Case(
        wrong="The run folder would be in a folder of another user",
        run="plan r.yaml run.dir=shared/run",
        make=_read_only,
        names=f"the run folder shared/run cannot be made ({HERE}/shared is read-only for you)",
        way="choose another with run.dir",
    ),
    Case(
        wrong="The data file belongs to another user",
        run="plan r.yaml",
        make=_failing(errno.EACCES, "open", "rows.jsonl"),
        names="data.source = 'rows.jsonl' cannot be read (Permission denied)",
        way="see that you may read it",
    ),
    Case(
        wrong="The reward file belongs to another user",
        run="plan r.yaml",
        make=_failing(errno.EACCES, "read_bytes", "my.py"),
        names=f"the reward file '{HERE}/my.py' cannot be read (Permission denied)",
        way="see that you may read it",
    ),
    Case(
        wrong="Two runs into one folder at once",
        run="train r.yaml",
        make=_used_by_another,
        names="run is in use by process",
        way="Wait until it ends, or stop it with: kill -INT",
    ),
    Case(
        wrong="Resume a run that is still going on",
        run="train --resume run",
        make=_stopped(_resumed_elsewhere),
        names="Two processes in one run folder would overwrite each other's records",
        way="Wait until it ends, or stop it with: kill -INT",
    ),
    Case(
        wrong="No Ray at RAY_ADDRESS",
        run=_connect_to_nothing,
        names="no Ray cluster answers at '127.0.0.1:",
        way="correct cluster.address or RAY_ADDRESS, or unset them",
    ),
    Case(
        wrong="Another program has taken the port of cluster.address",
        run=_connect_to_another_program,
        names="(Failed to connect to GCS)",
        way="Start one (launch/local_cluster.sh start)",
    ),
    Case(
        wrong="Ray does not start: /dev/shm is as small as in a container",
        run=_start_ray,
        make=_small_shared_memory,
        names="Ray does not start on this machine",
        way="/dev/shm has 0.06 GiB free, too little for Ray's objects: docker run --shm-size=2g",
    ),
    Case(
        wrong="More processes than the machine can start",
        run="train r.yaml rollout.workers=4000",
        names="rollout.workers = 4000: this run starts 4001 actors on this machine",
        way="or run on a cluster (cluster.address)",
    ),
    Case(
        wrong="More GPUs than the machine has",
        run="train r.yaml learner.gpus=64",
        names="learner.gpus",
        way="lower them",
    ),
    Case(
        wrong="The optimizer's package is not installed",
        run="plan r.yaml learner.optimizer=adamw_8bit",
        make=lambda place: place.patch.setattr("rlkl.recipe.model_limits.find_spec", lambda name: None),
        names="learner.optimizer = 'adamw_8bit' needs the package bitsandbytes",
        way="pip install 'rlkl[8bit]', or set learner.optimizer=adamw",
    ),
    Case(
        wrong="Publish without a Hugging Face token",
        run="push old me/policy",
        make=_without_token,
        names="there is no Hugging Face token",
        way="run `hf auth login`, or set HF_TOKEN",
    ),
]
