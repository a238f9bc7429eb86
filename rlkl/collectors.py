"""Where a step's groups come from: completions sampled and scored now, or the pairs of a preference data set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rlkl.clock import Clock
from rlkl.recipe import Recipe
from rlkl.rewards import RewardSet
from rlkl.rewards.similarity import sampled_similarity
from rlkl.rollout.collect import Draw, build_requests, completions_of, rollout_metrics
from rlkl.rollout.engine import Request
from rlkl.seeds import derive_seed
from rlkl.types import Completion, Rollout, RolloutGroup

Decode = Callable[[list[list[int]]], list[str]]


class Generate(Protocol):
    """Of the backend, what sampling takes."""

    def generate(self, requests: Sequence[Request]) -> list[Completion]: ...


class Collector(Protocol):
    """Turns drawn prompts into groups, and says what is to be said about them."""

    def groups(self, draws: Sequence[Draw], *, step: int, clock: Clock) -> list[RolloutGroup]: ...

    def metrics(self, groups: Sequence[RolloutGroup], *, step: int) -> dict[str, float]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledGroups:
    """The policy's own completions, scored by the recipe's rewards."""

    recipe: Recipe
    backend: Generate
    rewards: RewardSet
    decode: Decode

    def groups(self, draws: Sequence[Draw], *, step: int, clock: Clock) -> list[RolloutGroup]:
        """One round of generation, and the rewards of what came back."""
        samples = self.recipe.rollout.samples_per_prompt
        requests = build_requests(draws, samples=samples, seed=self.recipe.seed)
        answers = clock.run("rollout", self.backend.generate, requests)
        by_prompt = completions_of(answers, samples=samples, decode=self.decode)
        return [
            clock.run("reward", self._score, draw, completions, step)
            for draw, completions in zip(draws, by_prompt, strict=True)
        ]

    def metrics(self, groups: Sequence[RolloutGroup], *, step: int) -> dict[str, float]:
        """Rewards and lengths, and how alike completions of different prompts are where the recipe asks for it."""
        metrics = {**rollout_metrics(groups), "reward/failed": 0.0}
        if pairs := self.recipe.tracking.similarity_pairs:
            seed = derive_seed(self.recipe.seed, "similarity", step)
            similarity = sampled_similarity(groups, pairs=pairs, seed=seed)
            if similarity is not None:  # None: a single prompt
                metrics["similarity/meteor"] = similarity
        return metrics

    def _score(self, draw: Draw, completions: list[Completion], step: int) -> RolloutGroup:
        scored = self.rewards.score(draw.prompt, completions, step=step, seed=self.recipe.seed)
        rollouts = tuple(
            Rollout(
                sample_index=index,
                completion=completion,
                reward=score.reward,
                components=score.components,
                weights_version=step,
                draw=draw.position,
            )
            for index, (completion, score) in enumerate(zip(completions, scored, strict=True))
        )
        return RolloutGroup(prompt=draw.prompt, rollouts=rollouts)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredPairs:
    """The answers that came with the prompts: the chosen one has reward 1, the rejected one 0. Nothing is sampled."""

    decode: Decode

    def groups(self, draws: Sequence[Draw], *, step: int, clock: Clock) -> list[RolloutGroup]:
        """One group of two a prompt."""
        return [self._group(draw, step) for draw in draws]

    def metrics(self, groups: Sequence[RolloutGroup], *, step: int) -> dict[str, float]:
        """None: rewards are 1 and 0 by construction, and lengths are the data set's."""
        return {}

    def _group(self, draw: Draw, step: int) -> RolloutGroup:
        texts = self.decode([list(answer) for answer in draw.prompt.answers])
        rollouts = tuple(
            Rollout(
                sample_index=index,
                completion=Completion(token_ids=answer, logprobs=None, finish_reason="stop", text=text),
                reward=1.0 - index,
                components={},
                weights_version=step,
                draw=draw.position,
            )
            for index, (answer, text) in enumerate(zip(draw.prompt.answers, texts, strict=True))
        )
        return RolloutGroup(prompt=draw.prompt, rollouts=rollouts)


def build_collector(recipe: Recipe, backend: Generate, rewards: RewardSet, tokenizer: Any) -> Collector:
    """What the recipe's data ask for."""

    def decode(token_ids: list[list[int]]) -> list[str]:
        return tokenizer.batch_decode(token_ids, skip_special_tokens=True)

    if recipe.data.has_pairs:
        return StoredPairs(decode=decode)
    return SampledGroups(recipe=recipe, backend=backend, rewards=rewards, decode=decode)
