"""Schedules: when completions are sampled, and by which version of the weights (docs/schedules.md)."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

from rlkl.rollout.engine import Request
from rlkl.training.clock import Clock
from rlkl.training.collect import SampledGroups
from rlkl.training.hands import Finished
from rlkl.training.pending import Pending
from rlkl.training.selection import Selector
from rlkl.training.streaming import Stream, sample_alone
from rlkl.types import Selection, step_number

logger = logging.getLogger(__name__)


class Schedule(Protocol):
    """Has the batches of a run sampled.

    In each step the loop calls `collect`, lets the learner train, calls `before_publish`, publishes, and calls
    `published` and then `trained`.
    """

    def collect(self, step: int, clock: Clock) -> Selection:
        """Return the batch of the step with this index; wait until it is sampled, scored and selected."""
        ...

    def before_publish(self, clock: Clock) -> None:
        """Wait until the engines may load new weights."""
        ...

    def published(self, version: int) -> None:
        """Note that all engines hold this version: weights after so many steps."""
        ...

    def trained(self) -> None:
        """Note that the step of the last batch is in the weights."""
        ...

    def take_back(self) -> None:
        """Make the last batch the next one again, if its step is not in the weights. An error has ended the run."""
        ...

    def sample(self, requests: Sequence[Request]) -> Iterator[Finished]:
        """Sample requests that are not of a batch, after a publish and before the next `collect`.

        Yield them as they finish, all of the version that was published last. No batch depends on it.
        """
        ...

    def pending(self) -> Pending:
        """Return the part of a checkpoint."""
        ...

    def resume(self, pending: Pending, step: int) -> None:
        """Go on where another run has ended, before the step with this index."""
        ...

    def close(self) -> None:
        """End what runs beside the loop."""
        ...


def build_schedule(selector: Selector) -> Schedule:
    """Build the recipe's schedule (``rollout.schedule``)."""
    recipe, collector = selector.recipe, selector.collector
    if recipe.rollout.schedule == "one_step_off":
        return OneStepOff(selector=selector, steps=recipe.steps)
    if recipe.rollout.schedule == "stream":
        assert isinstance(collector, SampledGroups), "the recipe refuses stream without sampling"
        return Stream(selector, collector)
    return Alternate(selector=selector)


@dataclass(slots=True, kw_only=True)
class Alternate:
    """Samples a batch, trains on it, publishes, and so on in turns. Every token is of the newest weights."""

    selector: Selector
    _position: int = 0
    _batch: Selection | None = None

    def collect(self, step: int, clock: Clock) -> Selection:
        """See `Schedule.collect`."""
        with clock.waiting():
            self._batch = self.selector.collect(self._position, step=step, clock=clock)
        return self._batch

    def before_publish(self, clock: Clock) -> None:
        """Do nothing: no engine samples."""

    def published(self, version: int) -> None:
        """Do nothing."""

    def trained(self) -> None:
        """See `Schedule.trained`."""
        assert self._batch is not None
        self._position, self._batch = self._batch.position, None

    def take_back(self) -> None:
        """See `Schedule.take_back`. The batch is sampled again, with the same seeds and weights."""
        self._batch = None

    def sample(self, requests: Sequence[Request]) -> Iterator[Finished]:
        """See `Schedule.sample`. No other request is at the engines."""
        return sample_alone(self.selector.sampler, requests)

    def pending(self) -> Pending:
        """See `Schedule.pending`."""
        return Pending(position=self._position)

    def resume(self, pending: Pending, step: int) -> None:
        """See `Schedule.resume`."""
        self._position = pending.position

    def close(self) -> None:
        """Do nothing."""


@dataclass(slots=True, kw_only=True)
class OneStepOff:
    """Samples the next batch while the learner steps. Both end before the next version is published.

    Batch b is sampled by version b - 1, the first two by version 0. No engine loads weights while it samples, so a run
    is as reproducible as with `Alternate`.
    """

    selector: Selector
    steps: int
    """The run's number of steps."""
    _position: int = 0
    _batch: Selection | None = None
    """The one that the learner has."""
    _next: Selection | None = None
    _sampling: Future[tuple[Selection, Clock]] | None = None

    def collect(self, step: int, clock: Clock) -> Selection:
        """Return the batch that was sampled during the step before, and begin to sample the next one."""
        with clock.waiting():
            batch = self._next or self.selector.collect(self._position, step=step, clock=clock)
        self._batch, self._next = batch, None
        following = step_number(step)
        if following < self.steps:
            self._sampling = self._begin(batch.position, following)
        return batch

    def before_publish(self, clock: Clock) -> None:
        """Wait until the next batch is there; raises the error that sampling it ended with."""
        if self._sampling is None:
            return
        sampling, self._sampling = self._sampling, None
        with clock.waiting():
            self._next, spent = sampling.result()
        clock.take_in(spent)

    def published(self, version: int) -> None:
        """Do nothing."""

    def trained(self) -> None:
        """See `Schedule.trained`."""
        assert self._batch is not None
        self._position, self._batch = self._batch.position, None

    def take_back(self) -> None:
        """See `Schedule.take_back`. If the step is in the weights, wait for the batch that is being sampled.

        Without it, a resume would sample that batch with newer weights than this run.
        """
        if self._batch is not None:  # what was sampled after it will be sampled again by the same weights
            self._next, self._batch, self._sampling = self._batch, None, None
            return
        try:
            self.before_publish(Clock())
        except (Exception, SystemExit) as error:
            logger.warning("the batch of the next step was not sampled to its end (%s); a resume samples it", error)

    def sample(self, requests: Sequence[Request]) -> Iterator[Finished]:
        """See `Schedule.sample`. No other request is at the engines: the next batch is finished between two steps."""
        return sample_alone(self.selector.sampler, requests)

    def pending(self) -> Pending:
        """Return the next batch, which is finished between two steps."""
        if self._next is None:
            return Pending(position=self._position)
        rounds = int(self._next.metrics["rollout/rounds"])
        return Pending(position=self._position, groups=tuple(self._next.groups), rounds=rounds)

    def resume(self, pending: Pending, step: int) -> None:
        """See `Schedule.resume`."""
        self._position = pending.position
        if pending.groups:
            position = max(group.rollouts[0].draw for group in pending.groups) + 1
            self._next = self.selector.select(pending.groups, step=step, rounds=pending.rounds, position=position)

    def close(self) -> None:
        """Do nothing: a batch that is being sampled ends with its actors."""

    def _begin(self, position: int, step: int) -> Future[tuple[Selection, Clock]]:
        """Sample a batch on a thread of its own, which does not keep the process from ending."""
        done: Future[tuple[Selection, Clock]] = Future()

        def sample() -> None:
            clock = Clock()
            try:
                done.set_result((self.selector.collect(position, step=step, clock=clock), clock))
            except (Exception, SystemExit) as error:
                done.set_exception(error)

        threading.Thread(target=sample, name="sampling", daemon=True).start()
        return done
