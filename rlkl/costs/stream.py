"""Simulate the schedule ``stream``. Its events are ends of completions, scores, ends of steps, and ends of publishes.

A step trains the next B accepted groups in draw order. At most (S + 1) · B groups are active. A group stops being
active when the rule rejects it, or when it is trained and the new weights are published. Engines load weights between
two iterations, read again what they are decoding, and go on. They never wait for the learner otherwise.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from heapq import heappop, heappush
from math import inf

from rlkl.costs.engines import Completion, Group
from rlkl.costs.setting import Setting, SimulatedStep, staleness


class Stream:
    """The state of a run between two events."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._engines = setting.start_engines()
        self._plans = [0] * setting.engines
        """Number of the last event of each engine; earlier ones are void."""
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._planned = 0
        self._now = 0.0
        self._draws = 0
        self._active = 0
        self._unscored: deque[Group] = deque()
        """Groups in draw order, beginning with the first one that has no score yet."""
        self._accepted: deque[Group] = deque()
        """Accepted groups that wait for the learner. All groups drawn before them have a score."""
        self._step = 0
        self._is_learning = False
        self._published_s = 0.0
        """Time of the last publish."""
        self._counted = (0, 0.0)
        """Decoded tokens, and idle seconds of all engines, at the last publish."""
        self._ended: list[SimulatedStep] = []

    def steps(self) -> Iterator[SimulatedStep]:
        """Yield each step as it ends, without an end."""
        self._admit()
        while True:
            self._now, _, act = heappop(self._events)
            act()
            yield from self._ended
            self._ended.clear()

    def _plan(self, time: float, act: Callable[[], None]) -> None:
        self._planned += 1
        heappush(self._events, (time, self._planned, act))

    def _admit(self) -> None:
        """Draw groups into all free places; each goes to the engine with the fewest unfinished completions."""
        setting, touched = self._setting, set[int]()
        while self._active < (setting.max_staleness + 1) * setting.groups:
            group = Group(draw=self._draws, left=setting.simulated_samples)
            self._draws += 1
            self._active += 1
            self._unscored.append(group)
            number = min(range(setting.engines), key=lambda one: self._engines[one].unfinished)
            engine = self._engines[number]
            self._finish(engine.advance(self._now))
            engine.put(setting.completions(group))
            touched.add(number)
        for number in touched:
            self._watch(number)

    def _watch(self, number: int) -> None:
        """Set the event of the next end of a completion on an engine."""
        self._plans[number] += 1
        end = self._engines[number].next_end
        if end < inf:
            self._plan(end, partial(self._end, number, self._plans[number]))

    def _end(self, number: int, planned: int) -> None:
        if planned == self._plans[number]:
            engine = self._engines[number]
            self._finish(engine.advance(self._now))
            self._watch(number)

    def _finish(self, ended: Sequence[Completion]) -> None:
        """Set the events of the scores of groups that are complete; completions of one call end together."""
        for group in dict.fromkeys(completion.group for completion in ended):
            if group.left == 0:
                reward_s = self._setting.varied(self._setting.reward_s, 2, group.draw)
                self._plan(ended[0].end_s + reward_s, partial(self._score, group))

    def _score(self, group: Group) -> None:
        group.rejected = self._setting.rejects(group.draw)
        if group.rejected:
            self._active -= 1
            self._admit()
        while self._unscored and self._unscored[0].rejected is not None:
            first = self._unscored.popleft()
            if not first.rejected:
                self._accepted.append(first)
        self._learn()

    def _learn(self) -> None:
        """Start a step if the learner is free and the next groups are there."""
        setting = self._setting
        if not self._is_learning and len(self._accepted) >= setting.groups:
            self._is_learning = True
            batch = tuple(self._accepted.popleft() for _ in range(setting.groups))
            learner_s = setting.learning(batch, self._step)
            self._plan(self._now + learner_s, partial(self._load, batch, self._now - self._published_s, learner_s))

    def _load(self, batch: Sequence[Group], waited_s: float, learner_s: float) -> None:
        """Begin to publish: each engine ends its iteration and loads the weights."""
        for engine in self._engines:
            self._finish(engine.advance(self._now))
        publish_s = self._setting.varied(self._setting.publish_s, 1, self._step)
        ready = max(self._now, *(engine.now for engine in self._engines)) + publish_s
        for number, engine in enumerate(self._engines):
            engine.load(ready, self._step + 1)
            self._watch(number)
        self._plan(ready, partial(self._publish, batch, waited_s, learner_s))

    def _publish(self, batch: Sequence[Group], waited_s: float, learner_s: float) -> None:
        """End a step: record it, free the places of its groups, and go on."""
        setting, (decoded, idle_s) = self._setting, self._counted
        mean, longest = staleness(batch, self._step)
        self._counted = (
            sum(engine.decoded for engine in self._engines),
            sum(engine.idle_until(self._now) for engine in self._engines),
        )
        seconds = self._now - self._published_s
        self._ended.append(
            SimulatedStep(
                seconds=seconds,
                learner_s=learner_s,
                publish_s=seconds - learner_s - waited_s,
                learner_waited_s=waited_s,
                rollout_idle_s=(self._counted[1] - idle_s) / setting.engines,
                staleness_mean=mean,
                staleness_max=longest,
                tokens=sum(group.tokens for group in batch) * setting.each,
                decoded=(self._counted[0] - decoded) * setting.each,
                draws=tuple(group.draw for group in batch),
            )
        )
        self._published_s, self._is_learning = self._now, False
        self._step += 1
        self._active -= setting.groups
        self._admit()
        self._learn()
