"""Estimates from earlier rewards, and the draws that follow from them."""

from __future__ import annotations

import math
import random
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

from rlkl.data.curriculum.probabilities import (
    interest,
    inverse_gap_kl,
    inverse_gap_square,
    proportional,
    with_floor,
)

Outcome = tuple[int, float]
"""Number of a prompt, and the share of its completions that passed."""

UNSEEN_PASS_RATE = 0.5
"""Assumed of a prompt that has not been drawn, so that each is tried."""

UNSEEN_LOSS = 0.5
"""Counts as one observation of each bucket, which does not fade: a bucket that is not drawn returns to it."""

GAIN = 10.0
"""g of inverse-gap weighting is this times the root of the number of observations, as by default in Vowpal Wabbit."""


class Knowledge(ABC):
    """Estimates of arms: prompts, or buckets. Deterministic: no generator of its own."""

    def __init__(self, floor: float) -> None:
        self._floor = floor
        self._cumulative: list[float] | None = None
        self._largest = 0.0

    @abstractmethod
    def preferences(self) -> list[float]:
        """Return the probability of each arm before the floor."""

    @abstractmethod
    def prompt_of(self, arm: int, chance: random.Random) -> int:
        """Return the number of a prompt of an arm."""

    @abstractmethod
    def add(self, outcomes: Sequence[Outcome]) -> None:
        """Change the estimates by the outcomes of a block."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """Return the estimates, for JSON."""

    @abstractmethod
    def load(self, state: Mapping[str, Any]) -> None:
        """Take up what `state` returned."""

    def probabilities(self) -> list[float]:
        """Return the probability of each arm in the next draw."""
        return with_floor(self.preferences(), self._floor)

    def learn(self, outcomes: Sequence[Outcome]) -> None:
        """Learn from a block of draws, in their order. A block without outcomes changes nothing."""
        if outcomes:
            self.add(outcomes)
            self._cumulative = None

    def restore(self, state: Mapping[str, Any]) -> None:
        """Replace all estimates."""
        self.load(state)
        self._cumulative = None

    def choose(self, seed: int) -> int:
        """Draw a prompt; return its number."""
        chance, cumulative = random.Random(seed), self._tabulated()
        (arm,) = chance.choices(range(len(cumulative)), cum_weights=cumulative)
        return self.prompt_of(arm, chance)

    @property
    def largest_probability(self) -> float:
        """The probability of the arm that is drawn most often."""
        self._tabulated()
        return self._largest

    def _tabulated(self) -> list[float]:
        """Return cumulative probabilities; they are kept until something is learned."""
        if self._cumulative is None:
            probabilities = self.probabilities()
            self._cumulative, self._largest = list(accumulate(probabilities)), max(probabilities)
        return self._cumulative


class PassRates(Knowledge):
    """The last pass rate p of each prompt. A prompt is drawn in proportion to 4 p (1 - p)."""

    def __init__(self, prompts: int, *, floor: float) -> None:
        super().__init__(floor)
        self._prompts = prompts
        self._last: dict[int, float] = {}

    def preferences(self) -> list[float]:
        return proportional([interest(self._last.get(n, UNSEEN_PASS_RATE)) for n in range(self._prompts)])

    def prompt_of(self, arm: int, chance: random.Random) -> int:
        return arm

    def add(self, outcomes: Sequence[Outcome]) -> None:
        self._last.update(outcomes)

    def state(self) -> dict[str, Any]:
        return {"last": [list(one) for one in sorted(self._last.items())]}

    def load(self, state: Mapping[str, Any]) -> None:
        self._last = dict(state["last"])


class BucketLosses(Knowledge):
    """The discounted mean loss of each bucket, and inverse-gap weighting. The loss of an outcome is 1 - 4 p (1 - p).

    The mean is the constant of least discounted square loss, and of least discounted KL (log) loss, too. So the two
    losses differ in the probabilities alone.
    """

    def __init__(self, buckets: Sequence[Sequence[int]], *, loss: str, discount: float, floor: float) -> None:
        super().__init__(floor)
        self._buckets = buckets
        self._bucket_of = {prompt: number for number, bucket in enumerate(buckets) for prompt in bucket}
        self._weigh = inverse_gap_kl if loss == "kl" else inverse_gap_square
        self._discount = discount
        self._losses = [0.0] * len(buckets)
        self._counts = [0.0] * len(buckets)

    @property
    def estimates(self) -> list[float]:
        """The estimated loss of each bucket, in (0, 1)."""
        return [(loss + UNSEEN_LOSS) / (count + 1) for loss, count in zip(self._losses, self._counts, strict=True)]

    def preferences(self) -> list[float]:
        return self._weigh(self.estimates, GAIN * math.sqrt(sum(self._counts)))

    def prompt_of(self, arm: int, chance: random.Random) -> int:
        return chance.choice(self._buckets[arm])

    def add(self, outcomes: Sequence[Outcome]) -> None:
        self._losses = [self._discount * loss for loss in self._losses]
        self._counts = [self._discount * count for count in self._counts]
        for prompt, pass_rate in outcomes:
            bucket = self._bucket_of[prompt]
            self._losses[bucket] += 1 - interest(pass_rate)
            self._counts[bucket] += 1

    def state(self) -> dict[str, Any]:
        return {"losses": list(self._losses), "counts": list(self._counts)}

    def load(self, state: Mapping[str, Any]) -> None:
        self._losses, self._counts = list(state["losses"]), list(state["counts"])
