"""The recipe: everything a run depends on. Sections: `rlkl.recipe.sections`. Reading and writing: `rlkl.recipe.io`."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import Field, SerializeAsAny, WrapValidator, field_validator, model_validator

from rlkl.errors import did_you_mean
from rlkl.recipe.eval_section import EvalSection
from rlkl.recipe.reward_section import RewardSection, ScoringSection
from rlkl.recipe.rollout_section import RolloutSection
from rlkl.recipe.sections import (
    CheckpointSection,
    ClusterSection,
    DataSection,
    FrozenModelSection,
    LearnerSection,
    ModelSection,
    RunSection,
    TrackingSection,
    WeightsSection,
)
from rlkl.schema import Section
from rlkl.updates.base_settings import CorrectedSettings
from rlkl.updates.custom import OutsideSettings
from rlkl.updates.distill.checks import check_turns
from rlkl.updates.dro.settings import check_groups
from rlkl.updates.settings import GrpoSettings, UpdateSettings
from rlkl.updates.terms.checks import check_names, check_one_replay, check_wordings
from rlkl.updates.terms.followers import check_followers


def _or_outside(value: Any, built_in: Callable[[Any], UpdateSettings]) -> UpdateSettings | OutsideSettings:
    """Pass the settings of a custom rule on; they were checked when the recipe was read (`rlkl.recipe.io`)."""
    return value if isinstance(value, OutsideSettings) else built_in(value)


class Recipe(Section):
    """A whole run."""

    run: RunSection = Field(default_factory=lambda: RunSection(), description="Name and folder of the run.")
    seed: int = Field(default=0, ge=0, description="Every random draw of the run derives from it.")
    steps: int = Field(default=100, ge=1, description="Training steps (rollout, reward, learner, publish).")
    model: ModelSection = Field(description="The policy.")
    models: dict[str, FrozenModelSection] = Field(
        default_factory=dict, description="Further frozen models by name, for terms and rules: {teacher: {path: ...}}."
    )
    data: DataSection = Field(description="Where prompts come from.")
    rollout: RolloutSection = Field(default_factory=lambda: RolloutSection(), description="Sampling.")
    rewards: list[RewardSection] = Field(
        default_factory=list, description="Rewards; the update sees their weighted sum."
    )
    scoring: ScoringSection = Field(default_factory=lambda: ScoringSection(), description="The sum of the rewards.")
    eval: EvalSection | None = Field(default=None, description="Evaluation on held-out prompts; null: none.")
    update: SerializeAsAny[Annotated[UpdateSettings, WrapValidator(_or_outside)]] = Field(
        default_factory=lambda: GrpoSettings(), description="The update rule."
    )
    learner: LearnerSection = Field(default_factory=lambda: LearnerSection(), description="Optimisation.")
    weights: WeightsSection = Field(default_factory=lambda: WeightsSection(), description="Publish and prove.")
    tracking: TrackingSection = Field(default_factory=lambda: TrackingSection(), description="What is recorded.")
    checkpoint: CheckpointSection = Field(default_factory=lambda: CheckpointSection(), description="Saving.")
    cluster: ClusterSection = Field(default_factory=lambda: ClusterSection(), description="Ray.")

    @field_validator("update", mode="before")
    @classmethod
    def _grpo_where_no_rule_is_named(cls, value: Any) -> Any:
        return {"rule": "grpo", **value} if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _pairs_or_samples(self) -> Recipe:
        if self.data.has_pairs and not self.update.learns_from_pairs:
            raise ValueError(
                f"update.rule = {self.update.rule} learns from completions that the policy sampled; for the pairs of "
                "data.chosen_column and data.rejected_column take update.rule = sparsepo, or superhf to "
                "learn the chosen answers alone"
            )
        if self.data.has_pairs and self.rollout.workers > 0:
            raise ValueError(
                f"rollout.workers = {self.rollout.workers}, but with data.chosen_column nothing is sampled; set "
                "rollout.workers: 0, or leave chosen_column and rejected_column out to sample"
            )
        if not self.data.has_pairs and self.rollout.workers == 0:
            raise ValueError(
                "rollout.workers = 0: nothing is sampled, so the answers must come with the prompts; name their "
                "columns (data.chosen_column, data.rejected_column), or set rollout.workers to 1 or more"
            )
        return self

    @model_validator(mode="after")
    def _evaluation_fits(self) -> Recipe:
        if self.eval is None:
            if (self.checkpoint.best or "").startswith("eval/"):
                raise ValueError(
                    f"checkpoint.best = {self.checkpoint.best} is measured by an evaluation, and the recipe has none; "
                    "add eval: {data: {source: ...}}, or take a metric of training such as reward/mean"
                )
            return self
        if self.rollout.workers == 0:
            raise ValueError(
                "eval needs rollout workers to sample, and rollout.workers = 0; leave eval out, and evaluate the "
                "trained policy with `rlkl eval RUN_DIR --data ... --reward ...`"
            )
        return self

    @model_validator(mode="after")
    def _samples_for_the_schedule(self) -> Recipe:
        if self.data.has_pairs and self.rollout.schedule != "alternate":
            raise ValueError(
                f"rollout.schedule = {self.rollout.schedule}, but with data.chosen_column nothing is sampled; "
                "leave it out"
            )
        normalized = [reward.normalize for reward in self.rewards]
        if self.rollout.schedule == "stream" and "batch" in [self.scoring.normalize, *normalized]:
            key = "scoring.normalize" if self.scoring.normalize == "batch" else "rewards[].normalize"
            raise ValueError(
                f"{key} = batch needs all rewards of a step at once, but with rollout.schedule = stream "
                "each group is scored when it is finished; set it to group, or rollout.schedule: "
                "one_step_off"
            )
        return self

    @model_validator(mode="after")
    def _rollouts_fit_the_update(self) -> Recipe:
        check_turns(self.update.correction_rounds, schedule=self.rollout.schedule, placement=self.rollout.placement)
        normalized = {"scoring.normalize": self.scoring.normalize}
        normalized |= {f"rewards[{n}].normalize": reward.normalize for n, reward in enumerate(self.rewards)}
        check_groups(self.update.dro, normalized=normalized, prompts_per_step=self.rollout.prompts_per_step)
        return self

    @model_validator(mode="after")
    def _transport_reaches_every_process(self) -> Recipe:
        if self.rollout.tensor_parallel > 1 and self.weights.transport == "host":
            raise ValueError(
                f"weights.transport = host does not reach the {self.rollout.tensor_parallel} processes of an engine "
                "(rollout.tensor_parallel); set weights.transport: group, or auto"
            )
        return self

    @model_validator(mode="after")
    def _sleeping_engines_get_all_weights(self) -> Recipe:
        if self.rollout.placement == "colocated" and (problem := self._no_colocation()):
            raise ValueError(f"rollout.placement = colocated: {problem}, or set rollout.placement: separate")
        return self

    def _no_colocation(self) -> str | None:
        """Return why engines cannot take turns with the learner on its GPUs, and what to change; None if they can."""
        if self.data.has_pairs:
            return "with data.chosen_column nothing is sampled; leave it out"
        if self.model.publishes_adapters:
            return (
                "an engine that sleeps forgets all weights, but with model.lora in bfloat16 only the adapters are "
                "published; set model.dtype: float32, or leave model.lora out"
            )
        if self.weights.transport == "group" or self.rollout.tensor_parallel > 1:
            key = "weights.transport = group" if self.weights.transport == "group" else "rollout.tensor_parallel > 1"
            return (
                f"{key} sends weights from GPU to GPU, and two processes on one GPU cannot be in a group; set "
                "weights.transport: host and rollout.tensor_parallel: 1"
            )
        if self.learner.gpus not in (None, 0, 1):
            return (
                f"learner.gpus = {self.learner.gpus:g}, but each rank has one whole GPU, which an engine uses in "
                "turns; leave learner.gpus out"
            )
        return None

    @field_validator("models", mode="after")
    @classmethod
    def _names_are_free(cls, models: dict[str, FrozenModelSection]) -> dict[str, FrozenModelSection]:
        for name in models:
            if name in ("policy", "reference", "average", "lagged") or not re.fullmatch(r"[a-z][a-z0-9_]*", name):
                raise ValueError(
                    f"{name!r} cannot name a model: use small letters, digits and _, and not policy, average, "
                    "lagged or reference (which is set by model.reference)"
                )
        return models

    @model_validator(mode="after")
    def _terms_name_models(self) -> Recipe:
        named = ["reference", "average", "lagged", *self.models]
        for name in sorted(self.update.frozen_models - self.models.keys()):
            raise ValueError(
                f"update.rule = {self.update.rule} needs a model named {name!r}, and models has none; add "
                f"models: {{{name!r}: {{path: ...}}}}"
            )
        for number, term in enumerate(self.update.terms):
            to = term.frozen_model
            if to is not None and to not in named:
                raise ValueError(
                    f"update.terms[{number}].to = {to!r} names no model of models; {did_you_mean(to, named)}"
                )
        check_followers(self.update.terms)
        return self

    @model_validator(mode="after")
    def _names_of_terms_are_free(self) -> Recipe:
        check_names(self.update)
        check_one_replay(self.update)
        check_wordings(self.update, has_pairs=self.data.has_pairs)
        return self

    @model_validator(mode="after")
    def _minibatches_hold_groups(self) -> Recipe:
        if self.learner.minibatches > self.rollout.prompts_per_step:
            raise ValueError(
                f"learner.minibatches = {self.learner.minibatches} exceeds rollout.prompts_per_step = "
                f"{self.rollout.prompts_per_step}; a minibatch holds whole groups, so lower the one or raise the other"
            )
        return self

    @property
    def decided_update(self) -> UpdateSettings | OutsideSettings:
        """The rule's settings with ``correction = auto`` decided.

        In float32 and with turns of sampling and learning, the sampler has the learner's numbers.
        """
        if not isinstance(self.update, CorrectedSettings):
            return self.update
        is_exact = self.model.dtype == "float32" and self.rollout.schedule == "alternate"
        return self.update.for_sampler(is_exact=is_exact)

    @property
    def eval_data(self) -> DataSection | None:
        """The held-out prompts, every key filled in; None without an evaluation."""
        return None if self.eval is None else self.eval.data.within(self.data)
