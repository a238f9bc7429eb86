"""A source whose draws depend on the rewards of earlier batches."""

from __future__ import annotations

import copy
import threading
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from rlkl.data.curriculum.buckets import buckets_of
from rlkl.data.curriculum.knowledge import BucketLosses, Knowledge, Outcome, PassRates
from rlkl.data.prompt_source import PromptSource
from rlkl.data.report import DataReport
from rlkl.recipe import DataSection
from rlkl.recipe.curriculum_section import CurriculumSection
from rlkl.seeds import derive_seed
from rlkl.types import Prompt, RolloutGroup


class CurriculumSource(PromptSource):
    """Draws prompts by what is known when a draw is first asked for: the rewards of all batches observed until then.

    A draw has a seed of its own, so that draws and rewards alone decide the prompts. One thread may draw while another
    one saves.
    """

    def __init__(self, plain: PromptSource, knowledge: Knowledge, *, passes_at: float, seed: int) -> None:
        super().__init__(plain.prompts, plain.report, shuffle=False, seed=seed)
        self._plain = plain
        self._seed_of_draws = seed
        self._passes_at = passes_at
        self._known = knowledge
        self._saved = copy.deepcopy(knowledge)
        """Without the batches of `_batches`."""
        self._batches: list[tuple[int, list[Outcome]]] = []
        """Outcomes of batches that may not be in a checkpoint yet, each with the number of its last draw."""
        self._drawn: dict[int, int] = {}
        """The number of the prompt of each decided draw that may not be trained on yet."""
        self._lock = threading.Lock()

    def take(self, position: int, count: int) -> list[Prompt]:
        """See `PromptSource.take`: the stream of epochs, whatever was learned."""
        return self._plain.take(position, count)

    def draw(self, position: int, count: int) -> list[Prompt]:
        """See `PromptSource.draw`. Each draw is independent of the others, so a step may hold a prompt twice."""
        with self._lock:
            return [self.prompts[self._decide(number)] for number in range(position, position + count)]

    def _decide(self, number: int) -> int:
        if number not in self._drawn:
            self._drawn[number] = self._known.choose(derive_seed(self._seed_of_draws, "data/curriculum", number))
        return self._drawn[number]

    def observe(self, groups: Sequence[RolloutGroup]) -> dict[str, float]:
        """See `PromptSource.observe`. Groups without a reward teach nothing."""
        with self._lock:
            found = [(group, rate) for group in groups if (rate := pass_rate(group, self._passes_at)) is not None]
            outcomes = [(self._drawn[group.rollouts[0].draw], rate) for group, rate in found]
            self._known.learn(outcomes)
            self._batches.append((groups[-1].rollouts[0].draw, outcomes))
            metrics = {"data/top_probability": max(self._known.probabilities())}
        if found:
            metrics["data/pass_rate"] = fmean(rate for _, rate in found)
            metrics["data/middle_fraction"] = fmean(0 < rate < 1 for _, rate in found)
        return metrics

    def state(self, position: int) -> Mapping[str, Any]:
        """Return what was known before the batch at ``position``, and the draws from there on that are decided.

        No later call has a smaller ``position``.
        """
        with self._lock:
            while self._batches and self._batches[0][0] < position:
                self._saved.learn(self._batches.pop(0)[1])
            self._drawn = {number: prompt for number, prompt in self._drawn.items() if number >= position}
            return {"known": self._saved.state(), "drawn": [list(one) for one in sorted(self._drawn.items())]}

    def restore(self, state: Mapping[str, Any]) -> None:
        """See `PromptSource.restore`."""
        with self._lock:
            self._known.restore(state["known"])
            self._saved.restore(state["known"])
            self._drawn = dict(state["drawn"])
            self._batches = []


def pass_rate(group: RolloutGroup, passes_at: float) -> float | None:
    """Return the share of a group's scored rollouts with at least this reward before normalisation; None if none is."""
    scored = [rollout for rollout in group.rollouts if rollout.scored]
    rewards = [rollout.reward if rollout.raw_reward is None else rollout.raw_reward for rollout in scored]
    return fmean(reward >= passes_at for reward in rewards) if rewards else None


def build_source(section: DataSection, prompts: Sequence[Prompt], report: DataReport, *, seed: int) -> PromptSource:
    """Build the source that ``section.sampler`` asks for; raise `DataError` if the rows make no buckets for it."""
    plain = PromptSource(prompts, report, shuffle=section.shuffle, seed=seed)
    if section.sampler == "uniform":
        return plain
    curriculum = section.curriculum or CurriculumSection()
    if section.sampler == "pass_rate":
        knowledge: Knowledge = PassRates(len(prompts), floor=curriculum.floor)
    else:
        knowledge = BucketLosses(
            buckets_of(section, prompts),
            loss=curriculum.loss,
            discount=curriculum.discount,
            floor=curriculum.floor,
        )
    return CurriculumSource(plain, knowledge, passes_at=curriculum.passes_at, seed=seed)
