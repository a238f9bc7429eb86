"""Where a step's groups come from: completions sampled and scored now, or the pairs of a preference data set."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rlkl.data.answers import find_turn_end
from rlkl.recipe import Recipe
from rlkl.rewards import RewardSet
from rlkl.rewards.function.arguments import State
from rlkl.rewards.scoring.aggregate import Scored
from rlkl.rewards.scoring.reward_set import Round, ScoredRound
from rlkl.rewards.scoring.similarity import sampled_similarity
from rlkl.rollout.collect import Decode, Draw, build_requests, rollout_metrics, with_text
from rlkl.rollout.engine import Request
from rlkl.rollout.stopping import CompletionTexts
from rlkl.seeds import derive_seed
from rlkl.training.clock import Clock
from rlkl.types import Completion, Rollout, RolloutGroup

logger = logging.getLogger(__name__)


class Generate(Protocol):
    """Of the backend, what sampling takes."""

    def stream(self, requests: Sequence[Request]) -> Iterator[list[tuple[int, Completion]]]: ...


class Collector(Protocol):
    """Turns drawn prompts into groups, and says what is to be said about them."""

    def groups(self, draws: Sequence[Draw], *, step: int, clock: Clock) -> list[RolloutGroup]: ...

    def metrics(self, groups: Sequence[RolloutGroup], *, step: int) -> dict[str, float]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledGroups:
    """The policy's own completions, scored by the recipe's rewards while others are still being sampled."""

    recipe: Recipe
    backend: Generate
    rewards: RewardSet
    decode: Decode
    prompts: int
    """Usable rows of the data."""

    def groups(self, draws: Sequence[Draw], *, step: int, clock: Clock) -> list[RolloutGroup]:
        """One round of generation, and the rewards of what came back."""
        samples, seed = self.recipe.rollout.samples_per_prompt, self.recipe.seed
        epoch = draws[0].position / self.prompts
        scoring = self.rewards.open_round(
            [draw.prompt for draw in draws],
            samples=samples,
            state=State(step=step + 1, steps=self.recipe.steps, epoch=epoch, seed=seed),
            draws=[draw.position for draw in draws],
        )
        requests = build_requests(draws, samples=samples, seed=seed)
        completions = clock.run("rollout", self._sample, requests, scoring)
        done: ScoredRound = clock.run("reward", scoring.finish)
        self._tell_failures(done, step)
        rollouts = [
            _rollout(number % samples, completion, score, (step, draws[number // samples].position))
            for number, (completion, score) in enumerate(zip(completions, done.scored, strict=True))
        ]
        return [
            RolloutGroup(prompt=draw.prompt, rollouts=tuple(rollouts[n * samples : (n + 1) * samples]))
            for n, draw in enumerate(draws)
        ]

    def metrics(self, groups: Sequence[RolloutGroup], *, step: int) -> dict[str, float]:
        """Rewards and lengths, and how alike completions of different prompts are where the recipe asks for it."""
        metrics = rollout_metrics(groups)
        if pairs := self.recipe.tracking.similarity_pairs:
            seed = derive_seed(self.recipe.seed, "similarity", step)
            similarity = sampled_similarity(groups, pairs=pairs, seed=seed)
            if similarity is not None:  # None: a single prompt
                metrics["similarity/meteor"] = similarity
        return metrics

    def _sample(self, requests: Sequence[Request], scoring: Round) -> list[Completion]:
        """The completions in order, each handed to the rewards as it comes."""
        completions: dict[int, Completion] = {}
        for finished in self.backend.stream(requests):
            decoded = with_text([completion for _, completion in finished], self.decode)
            for (number, _), completion in zip(finished, decoded, strict=True):
                completions[number] = completion
                scoring.add(number, completion)
        return [completions[number] for number in range(len(requests))]

    def _tell_failures(self, done: ScoredRound, step: int) -> None:
        if not done.failures:
            return
        kinds = Counter(f"{failure.reward}: {failure.kind}" for failure in done.failures)
        where = f"; see {self.rewards.failures.path(step)}" if self.rewards.failures is not None else ""
        counts = ", ".join(f"{kind} {count}" for kind, count in sorted(kinds.items()))
        logger.warning("step %d: %d scores failed (%s)%s", step + 1, len(done.failures), counts, where)


def _rollout(sample_index: int, completion: Completion, score: Scored, origin: tuple[int, int]) -> Rollout:
    weights_version, draw = origin
    return Rollout(
        sample_index=sample_index,
        completion=completion,
        reward=score.reward,
        raw_reward=score.raw_reward,
        components=score.components,
        monitors=score.monitors,
        token_rewards=score.token_rewards,
        tags=score.tags,
        failed=score.failed,
        weights_version=weights_version,
        draw=draw,
    )


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


def build_collector(
    recipe: Recipe, backend: Generate, rewards: RewardSet, tokenizer: Any, *, prompts: int
) -> Collector:
    """What the recipe's data ask for; ``prompts`` are their usable rows."""

    end = find_turn_end(tokenizer, recipe.data.chat_template_kwargs)
    turn_end_id = None if end is None else end.stop_id
    if recipe.data.has_pairs:
        return StoredPairs(decode=CompletionTexts(tokenizer, turn_end_id=turn_end_id, stop=()))
    decode = CompletionTexts(tokenizer, turn_end_id=turn_end_id, stop=recipe.rollout.stop)
    return SampledGroups(recipe=recipe, backend=backend, rewards=rewards, decode=decode, prompts=prompts)
