"""Waiting for actors: every wait has a deadline and says whom it waits for."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from rlkl.errors import ActorDiedError, DeadlineError, RlklError

_SHOWN_CHARACTERS = 600


def wait(ref: Any, *, who: str, what: str, timeout_s: float) -> Any:
    """The result of one call.

    Raises the actor's own `RlklError`; `ActorDiedError` when it ended or failed otherwise; `DeadlineError`.
    """
    try:
        return ray.get(ref, timeout=timeout_s)
    except GetTimeoutError:
        raise DeadlineError(
            f"{who} did not {what} within {timeout_s:.3g} s. If that is too short, raise cluster.call_timeout_s, or "
            "cluster.start_timeout_s while starting."
        ) from None
    except RayTaskError as error:
        if isinstance(error.cause, RlklError):
            raise error.cause from None
        raise ActorDiedError(f"{who} failed to {what}: {error.cause!r}") from error
    except RayActorError as error:
        raise ActorDiedError(f"{who} ended while it was asked to {what}: {_short(error)}") from error


def _short(error: RayActorError) -> str:
    """Ray's account of a death without its page of statistics."""
    text = " ".join(str(error).split())
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]} ... (the rest is in Ray's logs)"


def wait_all(refs: Sequence[Any], *, who: Sequence[str], what: str, timeout_s: float) -> list[Any]:
    """The results of calls to several actors, under one deadline."""
    end = time.monotonic() + timeout_s
    return [
        wait(ref, who=name, what=what, timeout_s=max(end - time.monotonic(), 0.001))
        for ref, name in zip(refs, who, strict=True)
    ]
