"""Stacks of both sides of a wait that has passed its deadline, kept in the run folder."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray._private.state import actors as actor_table
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rlkl.system.stacks import own_stacks, stacks_of

logger = logging.getLogger(__name__)

FOLDER = "stacks"

_FETCH_S = 20.0
"""Seconds that another machine has to return the stacks of its process; it starts a process for that."""


@dataclass(slots=True)
class _Kept:
    folder: Path | None = None


_KEPT = _Kept()
"""One for all parts of this process, like the connection to Ray."""


def keep_in(run_dir: Path) -> None:
    """Keep all stacks that are taken from now on in the folder ``stacks`` of ``run_dir``."""
    _KEPT.folder = run_dir / FOLDER


def keep(problem: str, asked: Mapping[str, Any]) -> str:
    """Write the stacks of this process and of those that it waits for; return a sentence that names the file.

    ``problem``: the first line of the file. ``asked``: an unanswered call to each actor, or its handle, by its name.
    Returns nothing if no run has called `keep_in`.
    """
    if _KEPT.folder is None:
        return ""
    parts = [problem, f"---- this process, {os.getpid()} ----\n{own_stacks()}"]
    parts += [f"---- {name} ----\n{of_actor(one)}" for name, one in asked.items()]
    name = "-".join("-".join(asked).split())
    path = _KEPT.folder / f"{time.strftime('%Y%m%dT%H%M%S')}-{name}.txt"
    try:
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n\n".join(parts))
    except OSError as error:  # the wait's own error matters more
        logger.warning("The stacks could not be kept: %s", error)
        return ""
    return f" Stacks of both sides: {path}"


def of_actor(asked: Any) -> str:
    """Return the stacks of an actor, or the reason why there are none. ``asked``: a call to it, or its handle."""
    actor = asked.task_id().actor_id() if isinstance(asked, ray.ObjectRef) else asked._actor_id
    if actor.is_nil():
        return "It is a task of Ray, which has no process of its own while it waits for room."
    try:
        found = actor_table(actor.hex())
        process, node = found["Pid"], found["Address"]["NodeID"]
        if not process:
            return f"Its process does not run; Ray calls it {found['State']}."
        if node == ray.get_runtime_context().get_node_id():
            return stacks_of(process)
        there = NodeAffinitySchedulingStrategy(node_id=node, soft=False)
        return ray.get(
            ray.remote(stacks_of).options(num_cpus=0, scheduling_strategy=there).remote(process), timeout=_FETCH_S
        )
    except (RayError, KeyError, ValueError) as error:
        return f"They cannot be fetched: {error!r}"
