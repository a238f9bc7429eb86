"""Publishing after each step, and the sequences that prove it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlkl.data.prompts import PromptSource
from rlkl.recipe import Recipe
from rlkl.training.hands import WeightSync
from rlkl.types import Probe, RolloutGroup
from rlkl.weights import build_probes

PROBE_SHARE, MOST_TOKENS, FEWEST_PROBES = 0.015, 256, 2
"""The probes of a step have at most this share of its tokens, or so many tokens if that is more, but not fewer probes.

A probe is scored twice on each side in a publish (with the probes of the first step), a trained token costs three times
as much, so the proof costs about 3 % of the learner's and the engines' work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Publisher:
    """Publishes weights with probes from the step's own completions. Without workers, nothing is published."""

    recipe: Recipe
    weights: WeightSync
    source: PromptSource
    tokenizer: Any

    def probes(self, groups: Sequence[RolloutGroup]) -> list[Probe]:
        """Return the first completion of each of the step's first groups, with its prompt.

        At most ``weights.probe_prompts``, and fewer if they are long: see `PROBE_SHARE`.
        """
        chosen = groups[: self.recipe.weights.probe_prompts] if self.recipe.rollout.workers else []
        probes = build_probes(
            [group.prompt for group in chosen],
            [group.rollouts[0].completion.token_ids for group in chosen],
            engine_limit=self._engine_limit,
        )
        return affordable(probes, step_tokens=sum(_tokens(group) for group in groups))

    def before_step(self, probes: Sequence[Probe]) -> Sequence[Probe]:
        """Return the probes whose log-probs the learner must compute before the step."""
        return probes if self.weights.wants_probes else ()

    def publish(self, version: int, probes: Sequence[Probe]) -> dict[str, float]:
        """Publish the weights after a step; return the metrics of the proof. Raises `WeightSyncError`."""
        gap = self.weights.publish(version, probes)
        if not self.recipe.rollout.workers:
            return {}
        return {"weights/verified": 1.0, "weights/probe_max": gap, "weights/version": float(version)}

    def publish_first(self, version: int) -> None:
        """Bring every engine to the learner's weights before anything is sampled, at a start and after a resume."""
        if self.recipe.rollout.workers:
            self.weights.publish(version, self.data_probes())

    def data_probes(self) -> list[Probe]:
        """Return the first prompts with their answers, or with an end-of-sequence id if the data has none."""
        prompts = self.source.take(0, self.recipe.weights.probe_prompts)
        stop = (self.tokenizer.eos_token_id,)
        answers = [prompt.answers[0] if prompt.answers else stop for prompt in prompts]
        return build_probes(prompts, answers, engine_limit=self._engine_limit)

    @property
    def _engine_limit(self) -> int:
        return self.recipe.data.max_prompt_tokens + self.recipe.rollout.max_new_tokens


def affordable(probes: Sequence[Probe], *, step_tokens: int) -> list[Probe]:
    """Return the first probes, as many as cost little beside a step of ``step_tokens`` prompt and response tokens."""
    limit, tokens = max(MOST_TOKENS, PROBE_SHARE * step_tokens), 0
    chosen: list[Probe] = []
    for probe in probes:
        tokens += len(probe.token_ids)
        if len(chosen) >= FEWEST_PROBES and tokens > limit:
            break
        chosen.append(probe)
    return chosen


def _tokens(group: RolloutGroup) -> int:
    prompt = len(group.prompt.token_ids)
    return sum(prompt + len(rollout.completion.token_ids) for rollout in group.rollouts)
