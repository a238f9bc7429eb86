"""Waiting for actors: every wait has a deadline, and its error names the actor."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from rlkl.errors import ActorDiedError, DeadlineError, RlklError

_SHOWN_CHARACTERS = 600


def wait(ref: Any, *, who: str, what: str, timeout_s: float) -> Any:
    """Wait for one call and return its result.

    Raises the actor's own `RlklError`; `ActorDiedError` when it ended or failed otherwise; `DeadlineError`.
    """
    try:
        return ray.get(ref, timeout=timeout_s)
    except GetTimeoutError:
        raise late(who, what, timeout_s) from None
    except RayTaskError as error:
        if isinstance(error.cause, RlklError):
            raise error.cause from None
        raise ActorDiedError(f"{who} failed to {what}: {error.cause!r}") from error
    except RayActorError as error:
        raise ActorDiedError(f"{who} ended while it was asked to {what}: {short(error)}") from error


def short(error: RayActorError) -> str:
    """Return Ray's account of a death without its page of statistics."""
    text = " ".join(str(error).split())
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]} ... (the rest is in Ray's logs)"


def wait_all(refs: Sequence[Any], *, who: Sequence[str], what: str, timeout_s: float) -> list[Any]:
    """Wait for calls to several actors under one deadline; return the results in order.

    The first failure ends the wait.
    """
    end = time.monotonic() + timeout_s
    name_of, answers, pending = dict(zip(refs, who, strict=True)), {}, list(refs)
    while pending:
        done, pending = ray.wait(pending, timeout=max(end - time.monotonic(), 0.0))
        for ref in done or pending:
            left_s = max(end - time.monotonic(), 1.0)  # what is done may still have to travel
            try:
                answers[ref] = wait(ref, who=name_of[ref], what=what, timeout_s=left_s)
            except DeadlineError:
                raise late(name_of[ref], what, timeout_s) from None
    return [answers[ref] for ref in refs]


def late(who: str, what: str, timeout_s: float) -> DeadlineError:
    """Return the error for an actor that has missed its deadline."""
    return DeadlineError(
        f"{who} did not {what} within {timeout_s:g} s. If that is too short, raise cluster.call_timeout_s, or "
        "cluster.start_timeout_s while starting."
    )
