"""The run that `rlkl.costs.simulation` simulates, and the result: seconds, waiting and staleness of each step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from statistics import fmean

from rlkl.costs.engines import Completion, Engine, Group, IterationLaw
from rlkl.costs.lengths import Lengths

ALTERNATE, ONE_STEP_OFF, STREAM = "alternate", "one_step_off", "stream"
SCHEDULES = (ALTERNATE, ONE_STEP_OFF, STREAM)
"""Values of ``rollout.schedule``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Batches, engines, and the seconds of everything else."""

    groups: int
    """Groups of a step, B."""
    samples: int
    """Completions of a group."""
    lengths: Lengths
    engines: int
    slots: int
    """Sequences that one engine decodes together."""
    law: IterationLaw
    learner_s: float = 0.0
    """Seconds of the learner for each step, beside those for its tokens."""
    learner_token_s: float = 0.0
    """Seconds of the learner for each token of a trained sequence."""
    prompt: float = 0.0
    """Mean tokens of a prompt."""
    prefill_s: float = 0.0
    """Seconds of an engine for each token that it reads. The prompt of a group is read once."""
    publish_s: float = 0.0
    reward_s: float = 0.0
    """Seconds from the last completion of a batch, or in a stream of a group, to its score."""
    rejection: float = 0.0
    """Probability that the rule drops a group."""
    max_rounds: int = 1
    """Batches that are drawn at most to replace dropped groups. A stream always fills a step."""
    max_staleness: int = 2
    jitter: float = 0.0
    """The seconds of learner, publishing and rewards vary evenly between 1 - jitter and 1 + jitter times."""
    each: int = 1
    """Completions that one simulated completion stands for, which makes large groups cheap to simulate."""
    seed: int = 0

    @property
    def simulated_samples(self) -> int:
        """Simulated completions of a group."""
        return max(self.samples // self.each, 1)

    def varied(self, seconds: float, kind: int, number: int) -> float:
        """Return the seconds of the learner (0) or of publishing (1) in a step, or of a reward (2) for a draw."""
        if not self.jitter:
            return seconds
        chance = Random((self.seed * 1_000_003 + number) * 3 + kind)
        return seconds * chance.uniform(1 - self.jitter, 1 + self.jitter)

    def learning(self, trained: Sequence[Group], step: int) -> float:
        """Return the learner's seconds for a step on these groups."""
        tokens = sum(group.tokens + self.simulated_samples * self.prompt for group in trained) * self.each
        return self.varied(self.learner_s + self.learner_token_s * tokens, 0, step)

    def rejects(self, draw: int) -> bool:
        """Return whether the rule drops a draw; the seed and the draw decide."""
        return self.rejection > 0 and Random(self.seed * 7_919 + draw).random() < self.rejection

    def start_engines(self) -> list[Engine]:
        slots = max(self.slots // self.each, 1)
        return [
            Engine(law=self.law, slots=slots, prefill_s=self.prefill_s, each=self.each) for _ in range(self.engines)
        ]

    def completions(self, group: Group) -> list[Completion]:
        """Return the completions of a draw; the first one reads the prompt."""
        lengths = self.lengths.of_group(group.draw, group.left, self.seed)
        return [
            Completion(group=group, length=length, prompt=self.prompt, unread=0.0 if number else self.prompt)
            for number, length in enumerate(lengths)
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedStep:
    """One step, from the end of the publish before to the end of its own."""

    seconds: float
    learner_s: float
    publish_s: float
    """Until all engines have the weights. In a stream it begins with the rest of the iterations that are running."""
    learner_waited_s: float
    """Seconds in which the learner waited for a batch."""
    rollout_idle_s: float
    """Seconds in which an engine had nothing to decode, mean over engines."""
    staleness_mean: float
    """Versions between the weights that sampled a token and those that it trains; mean over the step's tokens."""
    staleness_max: int
    tokens: int
    """Completion tokens that were trained on."""
    decoded: int
    """Tokens that the engines decoded meanwhile, also for later steps and for groups that the rule drops."""
    draws: tuple[int, ...]
    """The trained groups."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulated:
    """The steps of a schedule. Means leave out the warm-up, whose steps have too few earlier ones to overlap with."""

    schedule: str
    steps: tuple[SimulatedStep, ...]
    warm_up: int

    @property
    def steady(self) -> tuple[SimulatedStep, ...]:
        return self.steps[self.warm_up :]

    @property
    def seconds(self) -> float:
        """Mean seconds of a step."""
        return fmean(step.seconds for step in self.steady)

    @property
    def learner_idle(self) -> float:
        """Share of the time in which the learner waits for a batch."""
        return sum(step.learner_waited_s for step in self.steady) / sum(step.seconds for step in self.steady)

    @property
    def rollout_idle(self) -> float:
        """Share of the time in which an engine has nothing to decode."""
        return sum(step.rollout_idle_s for step in self.steady) / sum(step.seconds for step in self.steady)

    @property
    def staleness_mean(self) -> float:
        tokens = sum(step.tokens for step in self.steady)
        return sum(step.staleness_mean * step.tokens for step in self.steady) / max(tokens, 1)

    @property
    def staleness_max(self) -> int:
        """Largest staleness of a token, also in the warm-up."""
        return max(step.staleness_max for step in self.steps)

    @property
    def tokens_per_s(self) -> float:
        """Completion tokens that are trained on, for each second."""
        return sum(step.tokens for step in self.steady) / sum(step.seconds for step in self.steady)


def staleness(trained: Sequence[Group], version: int) -> tuple[float, int]:
    """Return mean and maximum over the tokens of groups that weights of ``version`` are trained on."""
    tokens = sum(group.tokens for group in trained)
    oldest = min((group.oldest for group in trained if group.oldest is not None), default=version)
    return version - sum(group.versions for group in trained) / tokens if tokens else 0.0, version - oldest
