"""Evaluation on held-out prompts: what is asked of the engines, how it is scored, and when a run does it."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field

from rlkl.data.prompts import Encoder, choose, load_prompts
from rlkl.errors import DataError, RolloutError
from rlkl.recipe import EvalSection, Recipe
from rlkl.rewards import RewardSet
from rlkl.rewards.function.arguments import State
from rlkl.rewards.scoring.reward_set import Round, ScoredRound
from rlkl.rollout.collect import Decode, with_text
from rlkl.rollout.engine import Request
from rlkl.rollout.eval_metrics import evaluation_metrics
from rlkl.rollout.settings import completion_texts
from rlkl.seeds import derive_seed
from rlkl.tracking.tracker import Tracker
from rlkl.training.best import Best
from rlkl.training.collect import rollout_of
from rlkl.training.hands import Finished, Hands
from rlkl.training.schedules import Schedule
from rlkl.types import Completion, Example, Prompt, RolloutGroup

logger = logging.getLogger(__name__)

Sample = Callable[[Sequence[Request]], Iterator[Finished]]
"""Samples requests, and yields completions as they finish."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated:
    """The completions of an evaluation, scored."""

    groups: Sequence[RolloutGroup]
    """Sampled completions by prompt."""
    greedy: Sequence[RolloutGroup]
    """One greedy completion a prompt; empty without ``eval.greedy``."""
    seconds: float

    def examples(self) -> list[Example]:
        """Return the sampled completions as the learner takes them."""
        return [
            Example(prompt=group.prompt, rollout=rollout, group=number)
            for number, group in enumerate(self.groups)
            for rollout in group.rollouts
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """Held-out prompts, and how their completions are sampled and scored: the same at every step of every run."""

    section: EvalSection
    prompts: Sequence[Prompt]
    rewards: RewardSet
    decode: Decode
    seed: int
    steps: int
    """Steps of the run: rewards see the state of its last step, so that one that changes over the run is measured as
    it is in the end."""

    def requests(self) -> list[Request]:
        """Return all requests: the sampled ones prompt by prompt, then the greedy ones.

        Their seeds depend on the prompt and the sample alone. So two evaluations differ by the policy alone.
        """
        sampled = [
            self._request(prompt, sample, self.section.temperature)
            for prompt in self.prompts
            for sample in range(self.section.samples)
        ]
        return sampled + [self._request(prompt, 0, 0.0) for prompt in self.prompts if self.section.greedy]

    def run(self, sample: Sample) -> Evaluated:
        """Have all completions sampled, and score them as they finish.

        Raises:
            RewardError: a reward with ``on_error: raise`` failed, or a reward failed too often.
            RolloutError: the completions are of more than one version of the weights.
        """
        start = time.perf_counter()
        count, samples = len(self.prompts), self.section.samples
        rounds = [self._open_round(samples)] + ([self._open_round(1)] if self.section.greedy else [])
        completions: dict[int, Completion] = {}
        for finished in sample(self.requests()):
            texts = with_text([completion for _, completion in finished], self.decode)
            for (number, _), completion in zip(finished, texts, strict=True):
                completions[number] = completion
                which, index = divmod(number, count * samples)
                rounds[which].add(index, completion)
        _check_version(completions.values())
        groups = self._groups(samples, completions, 0, rounds[0].finish())
        greedy = self._groups(1, completions, count * samples, rounds[1].finish()) if self.section.greedy else []
        return Evaluated(groups=groups, greedy=greedy, seconds=time.perf_counter() - start)

    def _request(self, prompt: Prompt, sample: int, temperature: float) -> Request:
        return Request(
            prompt_token_ids=prompt.token_ids,
            images=prompt.images,
            seed=derive_seed(self.seed, "eval", prompt.id, sample),
            temperature=temperature,
        )

    def _open_round(self, samples: int) -> Round:
        state = State(step=self.steps, steps=self.steps, epoch=0.0, seed=derive_seed(self.seed, "eval"))
        return self.rewards.open_round(self.prompts, samples=samples, state=state, draws=range(len(self.prompts)))

    def _groups(
        self, samples: int, completions: dict[int, Completion], first: int, done: ScoredRound
    ) -> list[RolloutGroup]:
        _warn_of_failures(done)
        rollouts = [
            rollout_of(number % samples, completions[first + number], score, number // samples)
            for number, score in enumerate(done.scored)
        ]
        return [
            RolloutGroup(prompt=prompt, rollouts=tuple(rollouts[n * samples : (n + 1) * samples]))
            for n, prompt in enumerate(self.prompts)
        ]


def load_held_out(recipe: Recipe, section: EvalSection, rewards: RewardSet, encoder: Encoder) -> HeldOut:
    """Read the prompts of ``section`` and check that the rewards find their columns.

    Raises `DataError` and `RewardInputError`.
    """
    try:
        source = load_prompts(section.data.within(recipe.data), encoder, seed=recipe.seed)
    except DataError as error:
        raise DataError(f"eval.data: {error}") from error
    prompts = choose(source.take(0, len(source)), section.limit)
    for warning in rewards.check(choose(source.prompts, section.limit), of="eval.data"):
        logger.warning("%s", warning)
    return HeldOut(
        section=section,
        prompts=prompts,
        rewards=rewards,
        decode=completion_texts(recipe, encoder.tokenizer),
        seed=recipe.seed,
        steps=recipe.steps,
    )


@dataclass(slots=True, kw_only=True)
class Evaluator:
    """Evaluates a run when it is due. It changes nothing that the run trains on."""

    recipe: Recipe
    held_out: HeldOut | None
    hands: Hands
    schedule: Schedule
    tracker: Tracker
    best: Best
    _keeps_reference: bool | None = field(default=None, init=False)

    def evaluate(self, step: int) -> None:
        """Evaluate the published weights, those after ``step`` steps, if it is due and not recorded yet."""
        section = self.recipe.eval
        if self.held_out is None or section is None or self.tracker.has_evaluated(step):
            return
        if step not in (0, self.recipe.steps) and step % section.every:
            return
        if not self.tracker.evaluations:
            self.tracker.note(f"evaluating {len(self.held_out.prompts)} held-out prompts, the first time")
        done = self.held_out.run(self.schedule.sample)
        start = time.perf_counter()
        metrics = evaluation_metrics(done.groups, done.greedy, self._gaps(done, step))
        metrics["time/eval_s"] = done.seconds + time.perf_counter() - start
        if self.best.is_of_evaluations:  # before the record, so that a run that is killed here does both again
            self.best.consider(step, metrics, self.schedule.pending)
        self.tracker.evaluated(step, metrics, done.groups, done.greedy)

    def _gaps(self, done: Evaluated, version: int) -> Sequence[float]:
        """Return log policy - log reference of each sampled completion; nothing if that is no KL of the policy."""
        if self.held_out is None or self.held_out.section.temperature != 1:
            return ()
        if self._keeps_reference is None:
            self._keeps_reference = self.hands.learner.keeps_reference()
        if not self._keeps_reference:
            return ()
        gaps = self.hands.learner.reference_gaps(done.examples())
        if self.recipe.rollout.placement == "colocated":  # the engines sleep since the learner needed the memory
            self.hands.weights.publish(version, ())
        return gaps


def _check_version(completions: Collection[Completion]) -> None:
    versions = {completion.weights_version for completion in completions if not completion.versions}
    versions |= {version for completion in completions for version, _ in completion.versions}
    if len(versions) > 1:
        raise RolloutError(
            f"an evaluation was sampled by the versions {sorted(map(str, versions))} of the weights; expected one"
        )


def _warn_of_failures(done: ScoredRound) -> None:
    if done.failures:
        counts = Counter(f"{failure.reward}: {failure.kind}" for failure in done.failures)
        listed = ", ".join(f"{kind} {count}" for kind, count in sorted(counts.items()))
        first = done.failures[0]
        logger.warning(
            "evaluation: %d scores failed (%s); the first: %s on prompt %s",
            len(done.failures),
            listed,
            first.error,
            first.prompt_id,
        )
