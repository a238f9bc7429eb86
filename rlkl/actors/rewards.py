"""Reward workers as Ray actors: on any machine of the cluster, with CPUs and GPUs of their own."""

from __future__ import annotations

import math
import pickle
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from rlkl.actors.calls import short
from rlkl.actors.cluster import connect
from rlkl.actors.shells import RewardHost
from rlkl.recipe import Recipe
from rlkl.recipe.resources import reward_needs
from rlkl.rewards.arguments import Call
from rlkl.rewards.calling import Answer, overdue, raised
from rlkl.rewards.pool import WorkerSpec, setup_error
from rlkl.rewards.result import Failure


@contextmanager
def ray_for_rewards(recipe: Recipe) -> Iterator[None]:
    """Ray for the recipe's rewards alone; it ends with the block where it was started here."""
    own = connect(recipe.cluster, cpus=math.ceil(reward_needs(recipe).cpus))
    try:
        yield
    finally:
        if own:
            ray.shutdown()


class RayRewardWorker:
    """One actor, replaced whenever a call ends it or takes too long; see `rlkl.rewards.pool.Worker`."""

    def __init__(self, spec: WorkerSpec) -> None:
        self._spec = spec
        self._actor: Any = None
        self._broken: Failure | None = None

    @property
    def broken(self) -> Failure | None:
        return self._broken

    def start(self) -> None:
        failure = self._start()
        if failure is not None:
            raise setup_error(self._spec.name, failure)

    def answer(self, calls: Sequence[Call]) -> Iterator[Answer]:
        return map(self._answer, calls)

    def _answer(self, call: Call) -> Answer:
        if self._broken is not None:
            return Answer(failure=self._broken)
        actor: Any = self._actor
        try:
            ref = actor.call.remote(call)
        except (pickle.PicklingError, TypeError, AttributeError) as error:  # what a row holds cannot travel
            return Answer(failure=raised(error))
        failure, answer = self._wait(ref, self._spec.timeout_s)
        if failure is not None:
            self._end()
            self._broken = self._start()  # given up where it does not come up: each try may take minutes
        return answer or Answer(failure=failure)

    def close(self) -> None:
        if self._actor is not None:
            self._wait(self._actor.close.remote(), 5.0)
        self._end()

    def abandon(self) -> None: ...

    def _start(self) -> Failure | None:
        """Bring an actor up; what went wrong, or None."""
        options = {"num_cpus": self._spec.cpus, "num_gpus": self._spec.gpus}
        self._actor = ray.remote(RewardHost).options(**options).remote()
        failure, own = self._wait(self._actor.start.remote(self._spec), self._spec.start_timeout_s)
        if failure or own:
            self._end()
        return failure or own

    def _wait(self, ref: Any, timeout_s: float) -> tuple[Failure | None, Any]:
        """What went wrong with the actor, or what it answered."""
        try:
            return None, ray.get(ref, timeout=timeout_s)
        except GetTimeoutError:
            return overdue(timeout_s), None
        except RayActorError as error:
            return Failure(kind="crashed", what="ended its actor", detail=short(error)), None
        except RayTaskError as error:  # what it answered, or was asked, cannot travel
            return Failure(kind="raised", what=f"raised {type(error.cause).__name__}", detail=str(error.cause)), None

    def _end(self) -> None:
        if self._actor is not None:
            ray.kill(self._actor)
        self._actor = None
