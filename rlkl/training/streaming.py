"""The schedule ``stream``: completions are sampled all the time, and weights change while they are."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from rlkl.errors import RolloutError
from rlkl.recipe.rollout_section import REJECTED_BATCHES
from rlkl.rewards.scoring.reward_set import Round, too_many_failed
from rlkl.rollout.collect import Draw, with_text
from rlkl.rollout.engine import Request
from rlkl.training.clock import Clock
from rlkl.training.collect import SampledGroups
from rlkl.training.hands import Finished, Sampler
from rlkl.training.pending import Pending
from rlkl.training.selection import Selector
from rlkl.types import Completion, RolloutGroup, Selection, step_number

logger = logging.getLogger(__name__)

_LOOK_S = 0.02
"""Seconds between two looks at rewards that are being computed elsewhere."""


@dataclass(slots=True, kw_only=True)
class _Slot:
    """One group on its way: it is sampled, then scored, then trained on or rejected."""

    draw: Draw
    step: int = 0
    """Index of the step in which its sampling began."""
    scoring: Round | None = None
    completions: dict[int, Completion] = field(default_factory=dict)
    """By sample, from 0."""
    group: RolloutGroup | None = None
    rejected: bool = False
    published: bool = False
    """Whether a version that has been trained on it is in the engines."""

    @property
    def is_active(self) -> bool:
        return not (self.rejected or self.published)


@dataclass(slots=True, kw_only=True)
class _Aside:
    """Requests that are not of a batch. Their numbers at the sampler are negative, so that no draw has one of them."""

    requests: Sequence[Request]
    sent: bool = False
    finished: Finished = field(default_factory=list)
    """Completions that nobody has taken yet, numbered from 0."""


def sample_alone(sampler: Sampler, requests: Sequence[Request]) -> Iterator[Finished]:
    """Sample requests while no other is at the engines; let these forget them then.

    A prefix cache that was filled by these would change the rounding of what is sampled next.
    """
    sampler.submit(requests)
    yield from sampler.finished()
    sampler.forget()


class Stream:
    """Keeps the engines busy: a step trains on the next accepted groups in the order of their draws.

    A group is active from its draw until all engines hold weights that were trained on it, or until the rule rejects
    it. At most (max_staleness + 1) batches of groups are active. So fewer batches than that are ahead of a new group.
    It is therefore trained on before the weights that began it are more than ``max_staleness`` versions old.

    No group is dropped. If the rule rejects nothing, the timing does not change which prompts a batch holds.

    One thread feeds the engines and the rewards; the loop's thread takes batches. `_changed` guards what both use.
    """

    def __init__(self, selector: Selector, collector: SampledGroups) -> None:
        recipe = selector.recipe
        self._selector, self._collector = selector, collector
        self._sampler = collector.sampler
        self._samples = recipe.rollout.samples_per_prompt
        self._wanted = recipe.rollout.prompts_per_step
        self._staleness = recipe.rollout.max_staleness
        self._steps = recipe.steps
        self._changed = threading.Condition()
        self._slots: dict[int, _Slot] = {}
        """By draw, from the oldest that is not in the weights."""
        self._drawn = 0
        self._step = 0
        """Steps that are in the weights."""
        self._batch: list[int] = []
        """Draws of the batch that the learner has."""
        self._failed: deque[Counter[str]] = deque(maxlen=self._wanted)
        """Failed scores by reward, of the groups that were scored last."""
        self._scoring_s = 0.0
        self._aside: _Aside | None = None
        self._error: BaseException | None = None
        self._closing = False
        self._thread: threading.Thread | None = None

    def collect(self, step: int, clock: Clock) -> Selection:
        """See `Schedule.collect`."""
        clock.streams = True
        clock.enter("rollout")
        with self._changed, clock.waiting():
            self._start()
            self._changed.wait_for(lambda: self._error is not None or len(self._ready()) > 0)
            if self._error is not None:
                raise self._error
            self._batch = self._ready()
            groups = [group for draw in self._batch if (group := self._slots[draw].group) is not None]
            clock.spent["reward"], self._scoring_s = self._scoring_s, 0.0
        selection = self._selector.select(groups, step=step, rounds=1, position=self._batch[-1] + 1)
        stale = selection.metrics["rollout/staleness_max"]
        assert stale <= self._staleness, f"step {step} trains on tokens that are {stale:g} versions old"
        return selection

    def before_publish(self, clock: Clock) -> None:
        """Do nothing: engines load weights between two of their steps."""

    def published(self, version: int) -> None:
        """Let as many new groups begin as the batch had."""
        with self._changed:
            for draw in self._batch:
                self._slots[draw].published = True
            self._changed.notify_all()

    def trained(self) -> None:
        """See `Schedule.trained`."""
        with self._changed:
            for draw in self._batch:
                del self._slots[draw]
            self._batch = []
            self._step = step_number(self._step)

    def take_back(self) -> None:
        """See `Schedule.take_back`."""
        self._batch = []

    def sample(self, requests: Sequence[Request]) -> Iterator[Finished]:
        """See `Schedule.sample`. Groups of the coming batches are sampled meanwhile."""
        if self._thread is None:  # the first batch has not begun
            yield from sample_alone(self._sampler, requests)
            return
        left = len(requests)
        with self._changed:
            aside = self._aside = _Aside(requests=requests)
            self._changed.notify_all()
        while left:
            with self._changed:
                self._changed.wait_for(lambda: self._error is not None or len(aside.finished) > 0)
                if self._error is not None:
                    raise self._error
                part, aside.finished = aside.finished, []
            left -= len(part)
            yield part
        with self._changed:
            self._aside = None

    def pending(self) -> Pending:
        """Return all finished groups; the others are sampled again after a resume."""
        with self._changed:
            finished = [self._slots[draw].group for draw in sorted(self._slots)]
            position = min(self._slots, default=self._drawn)
            return Pending(position=position, groups=tuple(group for group in finished if group is not None))

    def resume(self, pending: Pending, step: int) -> None:
        """See `Schedule.resume`."""
        self._drawn, self._step = pending.position, step
        self._selector.source.observe(pending.groups)
        for group in pending.groups:
            draw = Draw(prompt=group.prompt, position=group.rollouts[0].draw)
            self._slots[draw.position] = _Slot(
                draw=draw, group=group, rejected=not self._selector.accepts(group), completions={}
            )

    def close(self) -> None:
        """End the thread; completions that are being sampled end with their actors."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="stream", daemon=True)
            self._thread.start()

    def _ready(self) -> list[int]:
        """Return the draws of the next batch, rejected groups included; none if one of its groups is not finished."""
        draws: list[int] = []
        accepted = 0
        for draw in sorted(self._slots):
            slot = self._slots[draw]
            if slot.group is None:
                return []
            draws.append(draw)
            accepted += not slot.rejected
            if accepted == self._wanted:
                return draws
        return []

    def _run(self) -> None:
        """Feed engines and rewards until the run ends."""
        try:
            while not self._closing:
                self._begin()
                for finished in self._sampler.finished():
                    self._take(finished)
                    self._begin()
                    if self._closing:
                        return
                self._take([])
                with self._changed:
                    pause_s = _LOOK_S if self._being_scored() else None
                    self._changed.wait_for(self._has_work, pause_s)
        except (Exception, SystemExit) as error:
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _has_work(self) -> bool:
        return self._closing or self._has_room() or (self._aside is not None and not self._aside.sent)

    def _begin(self) -> None:
        """Have new groups sampled, and requests that are not of a batch."""
        self._begin_groups()
        aside = self._aside
        if aside is None or aside.sent:
            return
        aside.sent = True
        for start in range(0, len(aside.requests), self._samples):
            part = aside.requests[start : start + self._samples]
            self._sampler.submit_together(part, first=start - len(aside.requests))

    def _has_room(self) -> bool:
        active = sum(slot.is_active for slot in self._slots.values())
        accepted = sum(not slot.rejected for slot in self._slots.values())
        left = (self._steps - self._step) * self._wanted
        if active >= (self._staleness + 1) * self._wanted or accepted >= left:
            return False
        return self._selector.source.ready(self._drawn)  # true if the rule rejects nothing

    def _begin_groups(self) -> None:
        """Have new groups sampled, as many as there is room for."""
        while True:
            with self._changed:
                while self._drawn in self._slots:  # finished before a resume
                    self._drawn += 1
                if not self._has_room():
                    return
                (draw,) = self._selector.draw(self._drawn, 1)
                self._drawn += 1
                slot = self._slots[draw.position] = _Slot(draw=draw, step=self._step)
            slot.scoring = self._collector.open_round([draw], step=slot.step, tolerated_of=self._wanted * self._samples)
            self._sampler.submit_together(self._collector.requests([draw]), first=draw.position * self._samples)

    def _take(self, finished: Sequence[tuple[int, Completion]]) -> None:
        """Pass completions to the rewards, and take in the groups whose rewards are there."""
        others = [(number, completion) for number, completion in finished if number < 0]
        if others and self._aside is not None:
            with self._changed:
                self._aside.finished += [(number + len(self._aside.requests), one) for number, one in others]
                self._changed.notify_all()
        finished = [(number, completion) for number, completion in finished if number >= 0]
        decoded = with_text([completion for _, completion in finished], self._collector.decode)
        for (number, _), completion in zip(finished, decoded, strict=True):
            slot = self._slots[number // self._samples]
            assert slot.scoring is not None
            slot.completions[number % self._samples] = completion
            slot.scoring.add(number % self._samples, completion)
        for slot in list(self._being_scored()):
            assert slot.scoring is not None
            if slot.scoring.ready:
                self._finish(slot, slot.scoring)

    def _being_scored(self) -> list[_Slot]:
        return [s for s in list(self._slots.values()) if s.group is None and len(s.completions) == self._samples]

    def _finish(self, slot: _Slot, scoring: Round) -> None:
        start = time.perf_counter()
        done = scoring.finish()
        completions = [slot.completions[sample] for sample in range(self._samples)]
        (group,) = self._collector.assemble([slot.draw], completions, done, step=slot.step)
        self._selector.source.observe([group])
        self._check_failures(Counter(failure.reward for failure in done.failures))
        rejected = not self._selector.accepts(group)
        with self._changed:
            slot.group, slot.rejected, slot.scoring = group, rejected, None
            self._scoring_s += time.perf_counter() - start
            self._check_rejections()
            self._changed.notify_all()

    def _check_failures(self, failed: Counter[str]) -> None:
        """Raise `RewardError` if a reward fails on more of a batch's samples than its section allows."""
        self._failed.append(failed)
        total = sum(self._failed, Counter[str]())
        samples = self._wanted * self._samples
        for reward in self._collector.rewards.rewards:
            limit = reward.section.max_failed_fraction
            if total[reward.name] > limit * samples:
                raise too_many_failed(
                    reward,
                    f"failed on {total[reward.name]} of the last {len(self._failed)} x {self._samples} samples, more "
                    f"than max_failed_fraction = {limit:g} of a step's {samples}.",
                )

    def _check_rejections(self) -> None:
        """Raise `RolloutError` if a batch cannot be filled."""
        rejected = accepted = 0
        for draw in sorted(self._slots.keys() - set(self._batch)):
            slot = self._slots[draw]
            accepted += slot.group is not None and not slot.rejected
            rejected += slot.rejected
            if accepted == self._wanted:
                return
        if rejected >= REJECTED_BATCHES * self._wanted:
            raise RolloutError(
                f"the rule trains on {accepted} of {rejected + accepted} groups that were sampled for one step of "
                f"rollout.prompts_per_step = {self._wanted}. Look at the rewards: does every completion of a prompt "
                "get the same?"
            )
