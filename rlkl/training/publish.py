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


@dataclass(frozen=True, slots=True, kw_only=True)
class Publisher:
    """Publishes weights with probes from the step's own completions. Without workers, nothing is published."""

    recipe: Recipe
    weights: WeightSync
    source: PromptSource
    tokenizer: Any

    def probes(self, groups: Sequence[RolloutGroup]) -> list[Probe]:
        """Return the first completion of each of the step's first groups, with its prompt."""
        chosen = groups[: self.recipe.weights.probe_prompts] if self.recipe.rollout.workers else []
        return build_probes(
            [group.prompt for group in chosen],
            [group.rollouts[0].completion.token_ids for group in chosen],
            engine_limit=self._engine_limit,
        )

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
