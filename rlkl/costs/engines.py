"""An engine over time: sequences that are decoded together, one token each in an iteration. Pure arithmetic.

Nothing is simulated iteration by iteration: between two ends of completions the number of running sequences is
constant, so the time until the next end follows from the seconds of one iteration.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Protocol

_ROUNDING = 1e-6
"""Part of an iteration that is rounding, not work."""


class IterationLaw(Protocol):
    """Seconds of one iteration of an engine."""

    def __call__(self, running: float, context: float) -> float:
        """Return the seconds in which each of ``running`` sequences gets one token; ``context``: tokens of them all."""
        ...


@dataclass(frozen=True, slots=True)
class LinearLaw:
    """fixed + each · running seconds."""

    fixed: float
    each: float = 0.0

    def __call__(self, running: float, context: float) -> float:
        return self.fixed + self.each * running


@dataclass(frozen=True, slots=True)
class TableLaw:
    """Seconds measured for some numbers of running sequences, linear between them and beyond the last two."""

    points: Sequence[tuple[float, float]]
    """Running sequences and seconds, at least two points, by rising number of sequences."""

    def __call__(self, running: float, context: float) -> float:
        place = bisect_left([count for count, _ in self.points], running)
        after = min(max(place, 1), len(self.points) - 1)
        (count_0, seconds_0), (count_1, seconds_1) = self.points[after - 1], self.points[after]
        slope = (seconds_1 - seconds_0) / (count_1 - count_0)
        return seconds_0 + slope * (running - count_0)


@dataclass(slots=True, eq=False)
class Group:
    """The completions of one draw. ``versions``: sum of the version of the weights over all finished tokens."""

    draw: int
    left: int
    """Completions that are not finished."""
    tokens: int = 0
    versions: int = 0
    oldest: int | None = None
    """Version that sampled its oldest token."""
    rejected: bool | None = None
    """Whether the rule drops it; None before it is scored."""


@dataclass(slots=True, eq=False)
class Completion:
    """One completion: its group, its length, and the tokens of its prompt that no other sequence has read."""

    group: Group
    length: int
    prompt: float
    unread: float
    start: int = 0
    """Iteration of its engine at which it started."""
    end_s: float = 0.0
    """Time of its last token."""


@dataclass(slots=True, kw_only=True)
class Engine:
    """Decodes at most ``slots`` sequences together; others wait in order.

    A sequence stands for ``each`` alike ones. `now` may lie ahead of the caller's time by less than an iteration or
    by the reading of a prompt, because an engine changes what it runs between two iterations only.
    """

    law: IterationLaw
    slots: int
    prefill_s: float = 0.0
    """Seconds for each token of a prompt, or of a running sequence that is read again."""
    each: int = 1
    now: float = 0.0
    iteration: int = 0
    idle_s: float = 0.0
    """Seconds without a running sequence."""
    decoded: int = 0
    """Tokens decoded so far."""
    _running: list[tuple[int, int, Completion]] = field(default_factory=list)
    _waiting: deque[Completion] = field(default_factory=deque)
    _started: int = 0
    _context: float = 0.0
    """Tokens of all running sequences, less one a sequence and iteration so far."""
    _rate: float = 0.0
    _versions: list[tuple[int, int]] = field(default_factory=lambda: [(0, 0)])
    """Iteration from which each version of the weights was used."""

    @property
    def unfinished(self) -> int:
        """Sequences that run or wait."""
        return len(self._running) + len(self._waiting)

    @property
    def next_end(self) -> float:
        """Time at which the next sequence ends; infinite if none runs."""
        if not self._running:
            return math.inf
        return self.now + (self._running[0][0] - self.iteration) * self._rate

    def idle_until(self, time: float) -> float:
        """Return the seconds without a running sequence until ``time``."""
        return self.idle_s + (0.0 if self._running else max(time - self.now, 0.0))

    def advance(self, to: float) -> list[Completion]:
        """Decode to the end of the iteration that runs at ``to``, which is not after `next_end`.

        Return the sequences that end with it; waiting ones take their places.
        """
        if not self._running:
            self.idle_s += max(to - self.now, 0.0)
            self.now = max(to, self.now)
            return []
        if to <= self.now:
            return []
        left = self._running[0][0] - self.iteration
        count = min(math.ceil((to - self.now) / self._rate - _ROUNDING), left)
        self.now += count * self._rate
        self.iteration += count
        self.decoded += count * len(self._running)
        ended: list[Completion] = []
        while self._running and self._running[0][0] == self.iteration:
            sequence = heappop(self._running)[2]
            self._context -= sequence.prompt - sequence.start
            sequence.end_s = self.now
            self._count_versions(sequence)
            ended.append(sequence)
        self._fill()
        return ended

    def put(self, sequences: Iterable[Completion]) -> None:
        """Add sequences behind the waiting ones, after `advance`."""
        self._waiting.extend(sequences)
        self._fill()

    def load(self, at: float, version: int) -> None:
        """Have new weights from ``at`` on, after `advance`: everything that runs is read again."""
        if not self._running:
            self.advance(at)
        self.now = max(at, self.now)
        self._versions.append((self.iteration, version))
        self.now += self.prefill_s * self.each * (self._context + len(self._running) * self.iteration)

    def _fill(self) -> None:
        while self._waiting and len(self._running) < self.slots:
            sequence = self._waiting.popleft()
            sequence.start = self.iteration
            self._started += 1
            heappush(self._running, (self.iteration + sequence.length, self._started, sequence))
            self._context += sequence.prompt - sequence.start
            self.now += self.prefill_s * sequence.unread
        if self._running:
            count, halfway = len(self._running), (self.iteration + self._running[0][0]) / 2
            self._rate = self.law(count * self.each, (self._context + count * halfway) * self.each)

    def _count_versions(self, sequence: Completion) -> None:
        """Add the versions of a sequence's tokens to its group."""
        group, end = sequence.group, self.iteration
        group.left -= 1
        group.tokens += sequence.length
        for start, version in reversed(self._versions):
            first = max(start, sequence.start)
            group.versions += (end - first) * version
            if first < end:
                group.oldest = version if group.oldest is None else min(version, group.oldest)
            end = first
            if start <= sequence.start:
                break
