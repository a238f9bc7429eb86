"""The learner's ranks in Ray actors: every call goes to all of them, and rank 0 answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from rlkl.actors import stacks
from rlkl.actors.calls import tail, wait_all
from rlkl.actors.shells import LearnerWorker
from rlkl.errors import ActorDiedError, DeadlineError, RlklError
from rlkl.learner.learner import LearnerSpec
from rlkl.learner.ranks import Rendezvous

LEARNER = "the learner"

_GRACE_S = 15.0
"""After the first failure: the others are taken to have failed by then, or wait for a rank that has failed."""


def start_rank(options: Mapping[str, Any]) -> Any:
    """Start the actor of a rank with Ray's options."""
    return ray.remote(LearnerWorker).options(**options).remote()


def rank_names(size: int) -> list[str]:
    """Return the names of the ranks in messages."""
    return [LEARNER] if size == 1 else [f"learner rank {rank}" for rank in range(size)]


class LearnerRanks:
    """Calls the actors of all ranks, `rlkl.actors.shells.LearnerWorker`; each call has a deadline."""

    def __init__(self, actors: Sequence[Any], *, timeout_s: float) -> None:
        self._actors, self._timeout_s = list(actors), timeout_s
        self._names = rank_names(len(self._actors))
        self._sent: list[list[Any]] = []
        """Calls sent but not yet awaited."""
        self._logs: list[str] = [""] * len(self._actors)
        self._broken: RlklError | None = None

    def start(self, spec: LearnerSpec, host: str, *, timeout_s: float) -> list[Any]:
        """Start loading the models and return what to wait for, one for each rank.

        ``host``: the address of rank 0's machine. Raises the errors of `wait_all`.
        """
        size = len(self._actors)
        refs = [actor.log_file.remote() for actor in self._actors]
        self._logs = wait_all(refs, who=self._names, what="name their logs", timeout_s=timeout_s)
        if size == 1:
            return [self._actors[0].start.remote(spec)]
        port = wait_all(
            [self._actors[0].open_store.remote(host, size, timeout_s)],
            who=self._names[:1],
            what="open the store of the ranks",
            timeout_s=timeout_s,
        )[0]
        shared = ray.put(spec)
        return [
            actor.start.remote(
                shared, Rendezvous(host=host, port=port, rank=rank, size=size, timeout_s=self._timeout_s)
            )
            for rank, actor in enumerate(self._actors)
        ]

    def send(self, method: str, *arguments: Any) -> Any:
        """Make a call on all ranks and return the reference to rank 0's answer; the next `call` waits for all."""
        self._check()
        refs = self._refs(method, arguments)
        self._sent.append(refs)
        return refs[0]

    def call(self, what: str, method: str, *arguments: Any, calls: int = 1) -> Any:
        """Make a call on all ranks, wait for all, and return rank 0's answer.

        ``calls``: the deadline is multiplied by this. Raises `DeadlineError`, `ActorDiedError`, or the error that
        the ranks raised; a rank that ended is named with the last lines of its log. After a rank has ended or missed a
        deadline, every later call raises that error at once.
        """
        return self.call_all(what, method, *arguments, calls=calls)[0]

    def call_all(self, what: str, method: str, *arguments: Any, calls: int = 1) -> list[Any]:
        """Make a `call` and return the answers of all ranks."""
        self.send(method, *arguments)
        return self.collect(what, calls=calls)

    def collect(self, what: str, *, calls: int = 1, spent_s: float = 0.0) -> list[Any]:
        """Wait for all that was sent, and return the answers of all ranks to the last call; see `call`.

        ``spent_s``: seconds of the deadline that the caller has waited already.
        """
        waiting, self._sent = self._sent, []
        refs = [ref for one in waiting for ref in one]
        try:
            limit_s = self._timeout_s * calls
            left_s = max(limit_s - spent_s, 0.0)
            answers = wait_all(refs, who=self._names * len(waiting), what=what, timeout_s=left_s, limit_s=limit_s)
        except RlklError as error:
            raise self._failure(error, refs) from error.__cause__
        return answers[-len(self._actors) :]

    def forget(self) -> None:
        """Leave the calls that were sent to themselves; nobody waits for their answers."""
        self._sent = []

    def _refs(self, method: str, arguments: tuple[Any, ...]) -> list[Any]:
        several = len(self._actors) > 1
        shared = [ray.put(one) if several and not isinstance(one, ray.ObjectRef) else one for one in arguments]
        return [getattr(actor, method).remote(*shared) for actor in self._actors]

    def _check(self) -> None:
        if self._broken is not None:
            raise self._broken

    def _failure(self, error: RlklError, refs: Sequence[Any]) -> RlklError:
        """Return the error to raise. Ranks that failed together can go on; otherwise no later call can succeed."""
        if isinstance(error, DeadlineError):
            self._broken = error  # a later call would wait behind the one that hangs
        if len(self._actors) == 1:
            ended = isinstance(error, ActorDiedError) and not isinstance(error.__cause__, RayTaskError)
            return ActorDiedError(f"{error}{tail(LEARNER, self._logs[0])}") if ended else error
        _, waiting = ray.wait(list(refs), num_returns=len(refs), timeout=_GRACE_S)
        ended = [rank for rank, actor in enumerate(self._actors) if not _lives(actor)]
        if ended:
            names = " and ".join(self._names[rank] for rank in ended)
            tails = "".join(tail(self._names[rank], self._logs[rank]) for rank in ended)
            self._broken = ActorDiedError(f"{names} ended, and the other ranks cannot go on without it: {error}{tails}")
            return self._broken
        if waiting and not isinstance(error, DeadlineError):
            problem = f"one rank of the learner failed, and the others cannot continue without it: {error}"
            unanswered = {self._names[refs.index(ref) % len(self._names)]: ref for ref in waiting}
            self._broken = ActorDiedError(f"{problem}{stacks.keep(problem, unanswered)}")
            return self._broken
        return error


def _lives(actor: Any) -> bool:
    """Return whether an actor's process is there; it may be busy."""
    try:
        ray.get(actor.__ray_ready__.remote(), timeout=0.5)
    except GetTimeoutError:
        return True
    except RayActorError:
        return False
    return True
