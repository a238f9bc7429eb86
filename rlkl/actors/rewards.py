"""Reward workers as Ray actors: on any machine of the cluster, with CPUs and GPUs of their own."""

from __future__ import annotations

import math
import pickle
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from rlkl.actors import stacks
from rlkl.actors.calls import short
from rlkl.actors.cluster import connect, uses_own_ray
from rlkl.actors.reservation import Reservation, cluster_nodes
from rlkl.actors.shells import RewardHost
from rlkl.recipe import Recipe
from rlkl.recipe.placement import place_rewards, reward_actors
from rlkl.recipe.resources import check_number
from rlkl.rewards.execution.call import CallResult, overdue, raised
from rlkl.rewards.execution.pool import CLOSED, WorkerSpec, setup_error
from rlkl.rewards.function.arguments import Call
from rlkl.rewards.function.result import Failure
from rlkl.system.machine import this_machine

_CLOSE_S = 5.0
"""Seconds that the function's ``close`` may take."""


@contextmanager
def ray_for_rewards(recipe: Recipe) -> Iterator[Callable[[WorkerSpec], RayRewardWorker]]:
    """Reserve room in Ray for the recipe's rewards alone, and yield the function that makes their workers.

    When the block ends, the room is given back, and Ray ends if it was started here. Raises `EnvironmentProblem`.
    """
    actors = reward_actors(recipe)
    if uses_own_ray(recipe.cluster):
        check_number(len(actors), f"{len(actors)} workers of rewards in mode actor", this_machine())
    own = connect(recipe.cluster, cpus=math.ceil(sum(actor.cpus for actor in actors)))
    try:
        placement = place_rewards(recipe, cluster_nodes())
        reservation = Reservation(placement, own_ray=own, timeout_s=recipe.cluster.start_timeout_s)
        try:
            yield worker_maker(recipe, reservation)
        finally:
            reservation.release()
    finally:
        if own:
            ray.shutdown()


def worker_maker(recipe: Recipe, reservation: Reservation) -> Callable[[WorkerSpec], RayRewardWorker]:
    """Return a function that makes the recipe's reward workers, each in its own part of the reservation."""
    waiting = reward_actors(recipe)

    def make(spec: WorkerSpec) -> RayRewardWorker:
        fitting = [actor for actor in waiting if (actor.cpus, actor.gpus) == (spec.cpus, spec.gpus)]
        if not fitting:  # a worker that the recipe does not count
            return RayRewardWorker(spec)
        waiting.remove(fitting[0])
        return RayRewardWorker(spec, reservation.options(fitting[0]))

    return make


class RayRewardWorker:
    """One actor, replaced whenever a call ends it or takes too long; see `rlkl.rewards.execution.pool.Worker`."""

    def __init__(self, spec: WorkerSpec, options: Mapping[str, Any] | None = None) -> None:
        """Take Ray's ``options``, with the room reserved for the actor; by default Ray finds room when it starts."""
        self._spec = spec
        self._options = options or {"num_cpus": spec.cpus, "num_gpus": spec.gpus}
        self._actor: Any = None
        self._broken: Failure | None = None
        self._lock = threading.Lock()
        """Held while a call is made, so that `abandon` finds it under way or forbids it."""
        self._busy = self._closing = False

    @property
    def broken(self) -> Failure | None:
        return self._broken

    def start(self) -> None:
        failure = self._start()
        if failure is not None:
            raise setup_error(self._spec.name, failure)

    def answer(self, calls: Sequence[Call]) -> Iterator[CallResult]:
        return map(self._answer, calls)

    def close(self) -> None:
        """End the actor, after it has had a few seconds for the function's ``close``."""
        if self._actor is not None and ray.is_initialized():
            self._wait(self._actor.close.remote(), _CLOSE_S)
        self._end()

    def abandon(self) -> None:
        """See `rlkl.rewards.execution.pool.Worker.abandon`."""
        with self._lock:
            self._closing = True
            if self._busy:
                self._end()

    def _answer(self, call: Call) -> CallResult:
        if self._broken is not None:
            return CallResult(failure=self._broken)
        try:
            failure, answer = self._ask(lambda: self._actor.call.remote(call), self._spec.timeout_s)
        except (pickle.PicklingError, TypeError, AttributeError) as error:  # a value of the row cannot be pickled
            return CallResult(failure=raised(error))
        if failure is not None and not self._is_over:
            self._end()
            self._broken = self._start()  # marks the worker as broken if it fails: each try may take minutes
        return answer or CallResult(failure=failure)

    def _start(self) -> Failure | None:
        """Start an actor; return the failure, or None."""

        def begin() -> Any:
            self._actor = ray.remote(RewardHost).options(**self._options).remote()
            return self._actor.start.remote(self._spec)

        failure, own = self._ask(begin, self._spec.start_timeout_s)
        if failure or own:
            self._end()
        return failure or own

    @property
    def _is_over(self) -> bool:
        """Whether nothing may be asked of Ray: the worker is being closed, or the run has ended.

        Ray would start anew for a thread that asks it after the run.
        """
        return self._closing or not ray.is_initialized()

    def _ask(self, call: Callable[[], Any], timeout_s: float) -> tuple[Failure | None, Any]:
        """Make a call that `abandon` can end; return the failure, or the answer."""
        with self._lock:
            if self._is_over:
                return CLOSED, None
            ref, self._busy = call(), True
        try:
            failure, answer = self._wait(ref, timeout_s)
        finally:
            with self._lock:
                self._busy = False
        return (CLOSED if failure is not None and self._is_over else failure), answer

    def _wait(self, ref: Any, timeout_s: float) -> tuple[Failure | None, Any]:
        """Wait for the actor; return the failure, or its answer."""
        try:
            return None, ray.get(ref, timeout=timeout_s)
        except GetTimeoutError:
            return overdue(timeout_s, "" if self._is_over else stacks.of_actor(ref)), None
        except RayActorError as error:
            return Failure(kind="crashed", what="ended its actor", detail=short(error)), None
        except RayTaskError as error:  # the call or its answer cannot be pickled
            return Failure(kind="raised", what=f"raised {type(error.cause).__name__}", detail=str(error.cause)), None

    def _end(self) -> None:
        actor, self._actor = self._actor, None
        if actor is not None and ray.is_initialized():
            ray.kill(actor)
