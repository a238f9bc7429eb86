"""Collect a step's groups: sample and score completions, or take the pairs of a preference data set."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rlkl.data.answers import find_turn_end
from rlkl.errors import RolloutError
from rlkl.recipe import Recipe
from rlkl.rewards import RewardSet
from rlkl.rewards.function.arguments import State
from rlkl.rewards.scoring.aggregate import SampleReward
from rlkl.rewards.scoring.reward_set import Round, ScoredRound
from rlkl.rewards.scoring.similarity import sampled_similarity
from rlkl.rollout.collect import Decode, Draw, build_requests, rollout_metrics, with_text
from rlkl.rollout.engine import Request
from rlkl.rollout.stopping import CompletionTexts
from rlkl.seeds import derive_seed
from rlkl.training.clock import Clock
from rlkl.training.correcting import Corrector, correction_metrics
from rlkl.training.hands import Sampler
from rlkl.types import Completion, Rollout, RolloutGroup, step_number

logger = logging.getLogger(__name__)


class Collector(Protocol):
    """Turns drawn prompts into groups, and computes the groups' metrics."""

    def groups(self, draws: Sequence[Draw], *, step: int, clock: Clock) -> list[RolloutGroup]: ...

    def metrics(self, groups: Sequence[RolloutGroup], *, step: int) -> dict[str, float]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledGroups:
    """Samples completions, and scores each with the recipe's rewards while others are still being sampled."""

    recipe: Recipe
    sampler: Sampler
    rewards: RewardSet
    decode: Decode
    prompts: int
    """Usable rows of the data."""
    corrector: Corrector | None = None
    """Corrects samples before they are scored; None: each is scored as soon as it is finished."""

    def groups(self, draws: Sequence[Draw], *, step: int, clock: Clock) -> list[RolloutGroup]:
        """Sample one round of completions and score them."""
        scoring = self.open_round(draws, step=step)
        completions = clock.run("rollout", self._sample, draws, scoring)
        return self.assemble(draws, completions, clock.run("reward", scoring.finish), step=step)

    def open_round(self, draws: Sequence[Draw], *, step: int, tolerated_of: int = 0) -> Round:
        """Prepare to score the completions of some draws. For ``tolerated_of`` see `RewardSet.open_round`."""
        return self.rewards.open_round(
            [draw.prompt for draw in draws],
            samples=self.recipe.rollout.samples_per_prompt,
            state=State(
                step=step_number(step),
                steps=self.recipe.steps,
                epoch=draws[0].position / self.prompts,
                seed=self.recipe.seed,
            ),
            draws=[draw.position for draw in draws],
            tolerated_of=tolerated_of,
        )

    def requests(self, draws: Sequence[Draw]) -> list[Request]:
        """Return the requests for some draws, prompt by prompt."""
        return build_requests(draws, samples=self.recipe.rollout.samples_per_prompt, seed=self.recipe.seed)

    def assemble(
        self, draws: Sequence[Draw], completions: Sequence[Completion], done: ScoredRound, *, step: int
    ) -> list[RolloutGroup]:
        """Put completions and their rewards together, by group; warn about failed scores."""
        samples = self.recipe.rollout.samples_per_prompt
        self._tell_failures(done, step)
        rollouts = [
            rollout_of(number % samples, completion, score, draws[number // samples].position)
            for number, (completion, score) in enumerate(zip(completions, done.scored, strict=True))
        ]
        return [
            RolloutGroup(prompt=draw.prompt, rollouts=tuple(rollouts[n * samples : (n + 1) * samples]))
            for n, draw in enumerate(draws)
        ]

    def metrics(self, groups: Sequence[RolloutGroup], *, step: int) -> dict[str, float]:
        """Return rewards and lengths, and the similarity between prompts if the recipe asks for it."""
        metrics = rollout_metrics(groups, rewarded=self.rewards.trains)
        if self.corrector is not None:
            metrics |= correction_metrics(groups)
        if pairs := self.recipe.tracking.similarity_pairs:
            seed = derive_seed(self.recipe.seed, "similarity", step)
            similarity = sampled_similarity(groups, pairs=pairs, seed=seed)
            if similarity is not None:  # None: a single prompt
                metrics["similarity/meteor"] = similarity
        return metrics

    def _sample(self, draws: Sequence[Draw], scoring: Round) -> list[Completion]:
        """Return the completions in order; pass each to the rewards as soon as it is finished, or corrected."""
        requests, completions = self.requests(draws), {}
        if self.corrector is not None:
            done = with_text(self.corrector.sample(requests, draws), self.decode)
            for number, completion in enumerate(done):
                scoring.add(number, completion)
            return done
        self.sampler.submit(requests)
        for finished in self.sampler.finished():
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
        logger.warning("step %d: %d scores failed (%s)%s", step_number(step), len(done.failures), counts, where)


def rollout_of(sample_index: int, completion: Completion, score: SampleReward, draw: int) -> Rollout:
    """Put a completion and its rewards together; raise `RolloutError` if it names no version of the weights."""
    if completion.weights_version is None:
        raise RolloutError("a completion came without the version of the weights that it was sampled with")
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
        weights_version=completion.weights_version,
        draw=draw,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredPairs:
    """Takes the answers of a data set: the chosen one has reward 1, the rejected one 0. Nothing is sampled."""

    decode: Decode

    def groups(self, draws: Sequence[Draw], *, step: int, clock: Clock) -> list[RolloutGroup]:
        """Return one group of two answers for each prompt."""
        return [self._group(draw, step) for draw in draws]

    def metrics(self, groups: Sequence[RolloutGroup], *, step: int) -> dict[str, float]:
        """Return nothing: rewards are 1 and 0 by construction, and lengths are the data set's."""
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
    recipe: Recipe,
    sampler: Sampler,
    rewards: RewardSet,
    tokenizer: Any,
    *,
    prompts: int,
    corrector: Corrector | None = None,
) -> Collector:
    """Build the collector for the recipe's data; ``prompts`` is the number of usable rows."""

    end = find_turn_end(tokenizer, recipe.data.chat_template_kwargs)
    turn_end_id = None if end is None else end.stop_id
    if recipe.data.has_pairs:
        return StoredPairs(decode=CompletionTexts(tokenizer, turn_end_id=turn_end_id, stop=()))
    decode = CompletionTexts(tokenizer, turn_end_id=turn_end_id, stop=recipe.rollout.stop)
    return SampledGroups(
        recipe=recipe, sampler=sampler, rewards=rewards, decode=decode, prompts=prompts, corrector=corrector
    )
