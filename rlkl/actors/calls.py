"""Waiting for actors: every wait has a deadline, and its error names the actor."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
from ray._private import worker as ray_worker
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError

from rlkl.actors import stacks
from rlkl.errors import ActorDiedError, DeadlineError, RlklError

logger = logging.getLogger(__name__)

_CAUSES = {
    "memory usage threshold": "Ray killed its process, because the memory of its machine was nearly full",
    "node running low on memory": "Ray killed its process, because the memory of its machine was nearly full",
    "its node has died": "its machine does not answer",
    "Worker exit type: SYSTEM_ERROR": "its process ended unexpectedly (killed, crashed or out of memory)",
}
"""Signs in Ray's texts, which are long and give advice on other programs, and the cause that each stands for."""
_SHOWN_CHARACTERS = 600
_SHOWN_LINES = 12
_SHOWN_BYTES = 20_000


def wait(ref: Any, *, who: str, what: str, timeout_s: float, limit_s: float | None = None) -> Any:
    """Wait for one call and return its result.

    ``limit_s``: the deadline that an error names, if ``timeout_s`` is only what is left of it.

    Raises the actor's own `RlklError`; `ActorDiedError` when it ended or failed otherwise; `DeadlineError`.
    """
    try:
        return ray.get(ref, timeout=timeout_s)
    except GetTimeoutError:
        raise deadline_error(who, what, limit_s or timeout_s, asked=ref) from None
    except RayTaskError as error:
        if isinstance(error.cause, RlklError):
            raise error.cause from None
        raise ActorDiedError(f"{who} failed to {what}: {error.cause!r}") from error
    except RayActorError as error:
        raise ActorDiedError(f"{who} ended while it was asked to {what}: {short(error)}") from error
    except RayError as error:
        raise ActorDiedError(f"Ray failed while {who} was asked to {what}: {short(error)}") from error


def short(error: BaseException) -> str:
    """Return the cause of a failure in a few words if Ray's text has a known one, and the folder of Ray's logs.

    Of any other text return the beginning. All of it is logged at level DEBUG.
    """
    text = " ".join(str(error).split())
    logger.debug("%s", text)
    told = next((cause for sign, cause in _CAUSES.items() if sign in text), text)
    told = told if len(told) <= _SHOWN_CHARACTERS else f"{told[:_SHOWN_CHARACTERS]} ..."
    node = ray_worker._global_node
    return told if node is None else f"{told} (Ray's logs: {node.get_logs_dir_path()})"


def wait_all(
    refs: Sequence[Any], *, who: Sequence[str], what: str, timeout_s: float, limit_s: float | None = None
) -> list[Any]:
    """Wait for calls to several actors under one deadline; return the results in order.

    ``limit_s``: the deadline that an error names, if ``timeout_s`` is only what is left of it. The first failure ends
    the wait.
    """
    end, limit_s = time.monotonic() + timeout_s, limit_s or timeout_s
    name_of, answers, pending = dict(zip(refs, who, strict=True)), {}, list(refs)
    while pending:
        done, pending = ray.wait(pending, timeout=max(end - time.monotonic(), 0.0))
        for ref in done or pending:
            if not done:
                raise deadline_error(name_of[ref], what, limit_s, asked=ref)
            left_s = max(end - time.monotonic(), 1.0)  # what is done may still have to travel
            answers[ref] = wait(ref, who=name_of[ref], what=what, timeout_s=left_s, limit_s=limit_s)
    return [answers[ref] for ref in refs]


def deadline_error(who: str, what: str, timeout_s: float, *, asked: Any) -> DeadlineError:
    """Return the error for an actor that has missed its deadline, and keep the stacks of both sides.

    ``asked``: the call that it has not answered, or its handle.
    """
    problem = f"{who} did not {what} within {timeout_s:g} s."
    kept = stacks.keep(problem, {who: asked})
    return DeadlineError(
        f"{problem} If that is too short, raise cluster.call_timeout_s, or cluster.start_timeout_s while "
        f"starting.{kept}"
    )


def tail(name: str, log: str) -> str:
    """Return the last lines that a process wrote, if its log can be read from this machine."""
    path = Path(log)
    if not log or not path.is_file():
        return ""
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - _SHOWN_BYTES, 0))
        lines = file.read().decode(errors="replace").splitlines()[-_SHOWN_LINES:]
    shown = "\n".join(f"  {line}" for line in lines)
    return f"\nThe last lines of {name} ({path}):\n{shown}" if lines else ""
