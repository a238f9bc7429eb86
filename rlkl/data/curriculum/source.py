"""A source whose draws depend on the rewards of earlier draws."""

from __future__ import annotations

import copy
import threading
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from rlkl.data.curriculum.buckets import buckets_of
from rlkl.data.curriculum.knowledge import BucketLosses, Knowledge, Outcome, PassRates
from rlkl.data.prompt_source import PromptSource
from rlkl.recipe import Recipe
from rlkl.recipe.curriculum_section import CurriculumSection
from rlkl.seeds import derive_seed
from rlkl.types import Prompt, RolloutGroup


class CurriculumSource(PromptSource):
    """Draws prompts by the rewards of earlier draws.

    Draws are counted in blocks of ``block``: the prompts of a step. A draw of block b knows all outcomes of the blocks
    before b - ``lag``, and no other. It has a seed of its own. So outcomes alone decide the prompts, and the time at
    which an outcome arrives does not.

    One thread may draw while another one saves.
    """

    def __init__(
        self, plain: PromptSource, knowledge: Knowledge, *, passes_at: float, seed: int, block: int, lag: int = 0
    ) -> None:
        super().__init__(plain.prompts, plain.report, shuffle=False, seed=seed)
        self._plain = plain
        self._seed_of_draws = seed
        self._passes_at = passes_at
        self._block, self._lag = block, lag
        self._known, self._blocks = knowledge, 0
        """Learned from so many blocks; for the next draw."""
        self._saved, self._saved_blocks = copy.deepcopy(knowledge), 0
        """For the first draw that is not trained on."""
        self._outcomes: dict[int, Outcome | None] = {}
        """By draw, those of blocks that are not in `_saved`; None if no completion has a reward."""
        self._drawn: dict[int, tuple[int, float]] = {}
        """The prompt's number and the largest probability, for each draw that is decided and perhaps not trained on."""
        self._lock = threading.Lock()

    def take(self, position: int, count: int) -> list[Prompt]:
        """See `PromptSource.take`: the stream of epochs, whatever was learned."""
        return self._plain.take(position, count)

    def ready(self, position: int) -> bool:
        """See `PromptSource.ready`."""
        with self._lock:
            return all(draw in self._outcomes for draw in self._between(self._blocks, self._blocks_for(position)))

    def draw(self, position: int, count: int) -> list[Prompt]:
        """See `PromptSource.draw`. Each draw is independent of the others, so a step may hold a prompt twice."""
        with self._lock:
            return [self.prompts[self._decide(number)] for number in range(position, position + count)]

    def observe(self, groups: Sequence[RolloutGroup]) -> None:
        """See `PromptSource.observe`."""
        with self._lock:
            for group in groups:
                draw = group.rollouts[0].draw
                if draw // self._block >= self._saved_blocks and draw not in self._outcomes:
                    rate = pass_rate(group, self._passes_at)
                    self._outcomes[draw] = None if rate is None else (self._drawn[draw][0], rate)

    def metrics(self, groups: Sequence[RolloutGroup]) -> dict[str, float]:
        """See `PromptSource.metrics`."""
        rates = [rate for group in groups if (rate := pass_rate(group, self._passes_at)) is not None]
        with self._lock:
            metrics = {"data/top_probability": self._drawn[groups[-1].rollouts[0].draw][1]}
        return metrics | ({"data/pass_rate": fmean(rates)} if rates else {})

    def state(self, position: int) -> Mapping[str, Any]:
        """See `PromptSource.state`. All draws before ``position`` are observed; no later call has a smaller one."""
        with self._lock:
            blocks = max(self._saved_blocks, self._blocks_for(position))
            self._saved_blocks = self._learn(self._saved, self._saved_blocks, blocks)
            self._blocks = self._learn(self._known, self._blocks, blocks)  # every draw from now on knows as much
            self._outcomes = {n: found for n, found in self._outcomes.items() if n >= blocks * self._block}
            self._drawn = {number: one for number, one in self._drawn.items() if number >= position}
            return {
                "known": self._saved.state(),
                "blocks": blocks,
                "outcomes": [[n, found] for n, found in sorted(self._outcomes.items()) if n < position],
                "drawn": [[number, *one] for number, one in sorted(self._drawn.items())],
            }

    def restore(self, state: Mapping[str, Any]) -> None:
        """See `PromptSource.restore`."""
        with self._lock:
            self._known.restore(state["known"])
            self._saved.restore(state["known"])
            self._blocks = self._saved_blocks = state["blocks"]
            self._outcomes = {draw: found and (found[0], found[1]) for draw, found in state["outcomes"]}
            self._drawn = {number: (prompt, top) for number, prompt, top in state["drawn"]}

    def _decide(self, number: int) -> int:
        if number not in self._drawn:
            self._blocks = self._learn(self._known, self._blocks, self._blocks_for(number))
            prompt = self._known.choose(derive_seed(self._seed_of_draws, "data/curriculum", number))
            self._drawn[number] = (prompt, self._known.largest_probability)
        return self._drawn[number][0]

    def _blocks_for(self, number: int) -> int:
        return max(number // self._block - self._lag, 0)

    def _between(self, first: int, end: int) -> range:
        """Return the draws of the blocks from ``first`` up to ``end``, exclusive."""
        return range(first * self._block, end * self._block)

    def _learn(self, knowledge: Knowledge, done: int, blocks: int) -> int:
        """Learn from the blocks after the first ``done`` ones, up to ``blocks`` in all; return how many it knows."""
        for block in range(done, blocks):
            draws = self._between(block, block + 1)
            assert self._outcomes.keys() >= set(draws), f"block {block} of draws is not observed"
            found = [self._outcomes[draw] for draw in draws]
            knowledge.learn([outcome for outcome in found if outcome is not None])
        return max(done, blocks)


def pass_rate(group: RolloutGroup, passes_at: float) -> float | None:
    """Return the share of a group's scored rollouts with at least this reward before normalisation; None if none is."""
    scored = [rollout for rollout in group.rollouts if rollout.scored]
    rewards = [rollout.reward if rollout.raw_reward is None else rollout.raw_reward for rollout in scored]
    return fmean(reward >= passes_at for reward in rewards) if rewards else None


def build_source(recipe: Recipe, plain: PromptSource) -> PromptSource:
    """Build the source that ``data.sampler`` asks for; raise `DataError` if the rows make no buckets for it.

    ``plain``: the prompts of ``recipe.data``.
    """
    section, rollout = recipe.data, recipe.rollout
    if section.sampler == "uniform":
        return plain
    curriculum = section.curriculum or CurriculumSection()
    if section.sampler == "pass_rate":
        knowledge: Knowledge = PassRates(len(plain), floor=curriculum.floor)
    else:
        knowledge = BucketLosses(
            buckets_of(section, plain.prompts),
            loss=curriculum.loss,
            discount=curriculum.discount,
            floor=curriculum.floor,
        )
    return CurriculumSource(
        plain,
        knowledge,
        passes_at=curriculum.passes_at,
        seed=recipe.seed,
        block=rollout.prompts_per_step,
        lag=rollout.max_staleness if rollout.schedule == "stream" else 0,
    )
