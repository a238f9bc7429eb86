"""Correct samples with a teacher before they are scored.

Source: sequence correction and re-generation (SCRG), arXiv 2407.10068.

Each round compares the samples with the teacher, with the learner's weights. Along a sample, among the places where the
sampled token is not the teacher's most probable one, that of the largest KL is the worst error; of equal ones it is the
first. The teacher's token takes its place, the tokens after it are dropped, and the policy samples on from there. A
sample without such a place stays as it is, and later rounds leave it out. A later round can correct an earlier place
than the round before, and then drops that correction.

    y0 y1 y2 y3 y4   error at 2   ->   y0 y1 q2 | y3' y4' y5'      provenance 0 0 1 2 2 2
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from rlkl.errors import RecipeError, RolloutError
from rlkl.recipe import Recipe
from rlkl.rollout.collect import Draw
from rlkl.rollout.engine import Request
from rlkl.rollout.stopping import StopWatch
from rlkl.seeds import derive_seed
from rlkl.training.hands import Hands, LearnerHandle, Sampler
from rlkl.types import (
    REGENERATED_TOKEN,
    TEACHER_TOKEN,
    Completion,
    Example,
    Rollout,
    RolloutGroup,
    TeacherView,
)
from rlkl.updates.base import PolicyUpdate, SampleCorrection

LEAST_NATS = 1e-6
"""A smaller KL is rounding: policy and teacher agree, whichever token was sampled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorstError:
    """A token to replace."""

    number: int
    """Its place in the completion, from 0."""
    nats: float
    """The KL between policy and teacher there."""
    token_id: int
    """The teacher's token."""
    logprob: float
    """The policy's log-prob of the teacher's token."""


def worst_error(token_ids: Sequence[int], view: TeacherView) -> WorstError | None:
    """Return the first place of the largest KL among those where the tokens differ; None if there is none.

    >>> view = TeacherView(nats=(0.9, 0.1, 0.4), token_ids=(5, 6, 7), logprobs=(-0.1, -2.0, -3.0))
    >>> worst_error((5, 8, 8), view).number
    2
    """
    differing = [
        number
        for number, (own, teachers) in enumerate(zip(token_ids, view.token_ids, strict=True))
        if own != teachers and view.nats[number] >= LEAST_NATS
    ]
    if not differing:
        return None
    number = max(differing, key=lambda place: view.nats[place])
    return WorstError(
        number=number, nats=view.nats[number], token_id=view.token_ids[number], logprob=view.logprobs[number]
    )


def corrected(completion: Completion, error: WorstError) -> Completion:
    """Return the completion up to the error, with the teacher's token in its place; all that follows is dropped."""
    at = error.number
    assert completion.logprobs is not None, "samples have log-probs"
    return replace(
        completion,
        token_ids=(*completion.token_ids[:at], error.token_id),
        logprobs=(*completion.logprobs[:at], error.logprob),
        corrections=(*(one for one in completion.corrections if one[0] < at), (at, error.nats)),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Corrector:
    """Samples completions and corrects them. The seed of each continuation follows from draw, sample and round."""

    correction: SampleCorrection
    sampler: Sampler
    learner: LearnerHandle
    seed: int
    """The recipe's."""
    samples: int
    """``rollout.samples_per_prompt``."""
    limit: int
    """``rollout.max_new_tokens``: of a whole completion, whoever chose its tokens."""
    stop_token_ids: tuple[int, ...]
    watch: StopWatch | None
    """Finds stop texts; None without any."""

    def sample(self, requests: Sequence[Request], draws: Sequence[Draw]) -> list[Completion]:
        """Return a completion for each request, in order, corrected and without text.

        ``requests`` are ``samples`` of each draw, draw by draw. Raises `RolloutError` for an engine that ignores
        `Request.max_new_tokens`, and what sampler and learner raise.
        """
        found = self._finished(requests)
        numbers = list(range(len(requests)))
        for round_number in range(1, self.correction.rounds + 1):
            views = self.learner.teacher_views([self._example(number, found[number], draws) for number in numbers])
            errors = {
                number: error
                for number, view in zip(numbers, views, strict=True)
                if (error := worst_error(found[number].token_ids, view)) is not None
            }
            if not errors:
                break
            begun = {number: corrected(found[number], error) for number, error in errors.items()}
            found |= self._continued(begun, requests, draws, round_number)
            numbers = list(errors)
        return [found[number] for number in range(len(requests))]

    def _example(self, number: int, completion: Completion, draws: Sequence[Draw]) -> Example:
        """Return what the learner compares; it needs no log-probs of the sampler."""
        draw, sample = draws[number // self.samples], number % self.samples
        rollout = Rollout(
            sample_index=sample,
            completion=replace(completion, logprobs=None),
            reward=0.0,
            components={},
            weights_version=completion.weights_version or 0,
            draw=draw.position,
        )
        return Example(prompt=draw.prompt, rollout=rollout, group=number // self.samples)

    def _continued(
        self, begun: Mapping[int, Completion], requests: Sequence[Request], draws: Sequence[Draw], round_number: int
    ) -> dict[int, Completion]:
        """Let the policy continue completions that end with the teacher's token, unless the token ends them."""
        found = {number: self._ended(completion) for number, completion in begun.items()}
        open_numbers = [number for number, completion in found.items() if completion is None]
        continuations = self._finished(
            [self._request(requests[n], begun[n], draws[n // self.samples], n, round_number) for n in open_numbers]
        )
        joined = {n: _joined(begun[n], continuations[place]) for place, n in enumerate(open_numbers)}
        for number, completion in joined.items():
            if len(completion.token_ids) > self.limit:
                raise RolloutError(
                    f"the engine continued a completion of {len(begun[number].token_ids)} tokens to "
                    f"{len(completion.token_ids)}, and rollout.max_new_tokens = {self.limit}: it ignores "
                    "Request.max_new_tokens (rlkl.rollout.engine). Add it there, or set update.corrections=0"
                )
        return {number: joined[number] if done is None else done for number, done in found.items()}

    def _ended(self, completion: Completion) -> Completion | None:
        """Return the completion with its reason if it ends with its last token; None if the policy continues it."""
        ids = completion.token_ids
        if ids[-1] in self.stop_token_ids or (self.watch is not None and self.watch.end(ids, len(ids) - 1) is not None):
            return replace(completion, finish_reason="stop")
        return replace(completion, finish_reason="length") if len(ids) >= self.limit else None

    def _request(self, first: Request, begun: Completion, draw: Draw, number: int, round_number: int) -> Request:
        sample, size = number % self.samples, len(begun.token_ids)
        return replace(
            first,
            prompt_token_ids=(*first.prompt_token_ids, *begun.token_ids),
            begun=size,
            max_new_tokens=self.limit - size,
            seed=derive_seed(self.seed, "correction", draw.position, draw.prompt.id, sample, round_number),
        )

    def _finished(self, requests: Sequence[Request]) -> dict[int, Completion]:
        """Sample requests to their end; return the completions by the number of their request."""
        if not requests:
            return {}
        self.sampler.submit(requests)
        return {number: completion for part in self.sampler.finished() for number, completion in part}


def _joined(begun: Completion, continuation: Completion) -> Completion:
    assert begun.logprobs is not None, "`corrected` has some"
    assert continuation.logprobs is not None, "samples have log-probs"
    return replace(
        begun,
        token_ids=begun.token_ids + continuation.token_ids,
        logprobs=begun.logprobs + continuation.logprobs,
        finish_reason=continuation.finish_reason,
    )


def build_corrector(
    recipe: Recipe, update: PolicyUpdate, hands: Hands, tokenizer: Any, stop_token_ids: tuple[int, ...]
) -> Corrector | None:
    """Build the corrector that the rule asks for; None if it asks for none.

    Raises `RecipeError` for a rule whose settings do not declare its rounds, since the recipe was not checked then.
    """
    asked = 0 if update.sample_correction is None else update.sample_correction.rounds
    if asked != recipe.update.correction_rounds:
        raise RecipeError(
            f"update.rule = {update.rule} asks for {asked} corrections of a sample, and its settings declare "
            f"{recipe.update.correction_rounds}: let Settings.correction_rounds return the same number"
        )
    if update.sample_correction is None:
        return None
    return Corrector(
        correction=update.sample_correction,
        sampler=hands.sampler,
        learner=hands.learner,
        seed=recipe.seed,
        samples=recipe.rollout.samples_per_prompt,
        limit=recipe.rollout.max_new_tokens,
        stop_token_ids=stop_token_ids,
        watch=StopWatch(tokenizer, recipe.rollout.stop) if recipe.rollout.stop else None,
    )


def correction_metrics(groups: Sequence[RolloutGroup]) -> dict[str, float]:
    """Return how much of a step's samples was corrected; means over corrections only if there are any."""
    completions = [rollout.completion for group in groups for rollout in group.rollouts]
    origins = [origin for completion in completions for origin in completion.provenance]
    tokens = max(sum(len(completion.token_ids) for completion in completions), 1)
    places = [number / len(one.token_ids) for one in completions for number, _ in one.corrections]
    metrics = {
        "rollout/corrected_fraction": fmean(bool(completion.corrections) for completion in completions),
        "rollout/teacher_token_fraction": origins.count(TEACHER_TOKEN) / tokens,
        "rollout/regenerated_token_fraction": origins.count(REGENERATED_TOKEN) / tokens,
    }
    if places:
        metrics["rollout/correction_place"] = fmean(places)
        metrics["rollout/correction_kl"] = fmean(nats for one in completions for _, nats in one.corrections)
    return metrics
