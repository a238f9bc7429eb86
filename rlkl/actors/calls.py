"""Waiting for actors: every wait has a deadline, and its error names the actor."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
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
        raise _late(who, what, timeout_s) from None
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
                raise _late(name_of[ref], what, timeout_s) from None
    return [answers[ref] for ref in refs]


def stream_all(
    generators: Sequence[Any], *, who: Sequence[str], what: str, timeout_s: float
) -> Iterator[tuple[int, Any]]:
    """Yield the values of several actors' generators as they come, with their actors' numbers; one deadline for all."""
    end = time.monotonic() + timeout_s
    numbers = list(range(len(generators)))
    while numbers:
        ready, _ = ray.wait([generators[number] for number in numbers], timeout=max(end - time.monotonic(), 0.0))
        if not ready:
            raise _late(who[numbers[0]], what, timeout_s)
        number = next(number for number in numbers if generators[number] is ready[0])
        try:
            ref = next(generators[number])
        except StopIteration:
            numbers.remove(number)
            continue
        yield number, wait(ref, who=who[number], what=what, timeout_s=max(end - time.monotonic(), 1.0))


def _late(who: str, what: str, timeout_s: float) -> DeadlineError:
    return DeadlineError(
        f"{who} did not {what} within {timeout_s:g} s. If that is too short, raise cluster.call_timeout_s, or "
        "cluster.start_timeout_s while starting."
    )
