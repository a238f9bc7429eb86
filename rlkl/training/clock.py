"""Measure the time of the parts of a step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from rlkl.training.hands import Sampler


@dataclass(slots=True, kw_only=True)
class Clock:
    """Seconds spent in each part of a step."""

    entered: Callable[[str], None] | None = None
    """Called with the name of each part when it starts."""
    started: float = field(default_factory=time.perf_counter)
    spent: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(("rollout", "reward", "learner", "publish"), 0.0)
    )
    waited_s: float = 0.0
    """Seconds in which the learner waited for its batch."""
    sampler: Sampler | None = None
    """To ask how long the engines were idle."""
    streams: bool = False
    """Whether sampling never stops: its time is then the step's without the engines' idle time."""
    idle_before_s: float = field(init=False)

    def __post_init__(self) -> None:
        self.idle_before_s = self._idle_s()

    def run(self, part: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call ``function`` and add its time to ``part``."""
        with self.time(part):
            return function(*arguments)

    @contextmanager
    def time(self, part: str) -> Iterator[None]:
        """Add the time of the block to ``part``."""
        self.enter(part)
        start = time.perf_counter()
        try:
            yield
        finally:
            self.spent[part] += time.perf_counter() - start

    def enter(self, part: str) -> None:
        """Note that a part starts."""
        if self.entered is not None:
            self.entered(part)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time of the block as the learner's waiting."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.waited_s += time.perf_counter() - start

    def take_in(self, other: Clock) -> None:
        """Add the parts that another thread has timed."""
        for part, seconds in other.spent.items():
            self.spent[part] += seconds

    def metrics(self, *, rollouts: int, tokens: int) -> dict[str, float]:
        """Return seconds by part, and throughput; that of sampling only if something was sampled."""
        whole = time.perf_counter() - self.started
        idle_s = min(max(self._idle_s() - self.idle_before_s, 0.0), whole)  # a new worker counts from 0
        if self.streams:
            self.spent["rollout"] = max(whole - idle_s, 0.0)
        counted = self.waited_s + self.spent["learner"]
        metrics = {
            **{f"time/{part}_s": seconds for part, seconds in self.spent.items()},
            "time/learner_waited_s": self.waited_s,
            "time/rollout_idle_s": idle_s,
            "time/step_s": whole,
            "time/other_fraction": max(1.0 - counted / whole, 0.0),
            "throughput/samples_per_s": rollouts / whole,
        }
        if self.spent["rollout"] > 0:
            metrics["rollout/tokens_per_s"] = tokens / self.spent["rollout"]
        return metrics

    def _idle_s(self) -> float:
        return 0.0 if self.sampler is None else self.sampler.idle_s
