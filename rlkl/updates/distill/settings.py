"""The settings of on-policy distillation. No torch here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field, model_validator

from rlkl.updates.base_settings import CorrectedSettings
from rlkl.updates.run_facts import RunFacts
from rlkl.updates.terms.settings import Direction


class DistillSettings(CorrectedSettings):
    """On-policy distillation: KL to a teacher on the policy's own samples (`rlkl.updates.distill`)."""

    rule: Literal["distill"] = Field(default="distill", description="The update rule.")
    teacher: str = Field(default="teacher", description="The teacher: a name of models, with the policy's vocabulary.")
    placement: Literal["loss", "reward"] = Field(
        default="loss",
        description="loss: the exact KL; reward: log(teacher / policy) of each sampled token as its advantage.",
    )
    direction: Direction = Field(
        default="policy_to_model",
        description="Of the exact KL: KL(policy || teacher), or KL(teacher || policy), which covers the teacher.",
    )
    top_k: int | None = Field(
        default=None,
        ge=1,
        description="Exact KL over the teacher's k likeliest tokens and a tail; null: the whole vocabulary.",
    )
    clip: float = Field(default=0.2, gt=0, lt=1, description="reward: the ratio is clipped at 1 - clip and 1 + clip.")
    max_log_ratio: float = Field(
        default=10.0, gt=0, description="reward: log(teacher / policy) is cut at plus and minus so many nats."
    )
    reward_coef: float = Field(
        default=0.0, ge=0, description="reward: weight of GRPO's advantage from the recipe's rewards beside it."
    )

    @model_validator(mode="after")
    def _keys_fit_the_placement(self) -> DistillSettings:
        elsewhere = ("clip", "max_log_ratio", "reward_coef") if self.placement == "loss" else ("direction", "top_k")
        defaults = type(self).model_fields
        misplaced = [key for key in elsewhere if getattr(self, key) != defaults[key].default]
        if misplaced:
            other = "reward" if self.placement == "loss" else "loss"
            raise ValueError(
                f"{' and '.join(misplaced)} with placement = {self.placement}: it acts with placement = "
                f"{other} only. Leave it out, or set placement: {other}"
            )
        return self

    @property
    def keeps_reference(self) -> bool:
        return False

    @property
    def frozen_models(self) -> frozenset[str]:
        return frozenset({self.teacher})

    @property
    def own_terms(self) -> frozenset[str]:
        return frozenset({"distill"} if self.placement == "loss" else {"policy"})

    def warnings(self, run: RunFacts) -> Iterator[str]:
        if (source := self.selection(run)) is not None and self.placement == "reward":
            yield (
                f"{source} with update.placement = reward: completions picked by their rewards are no sample of the "
                "policy, so log(teacher / policy) no longer estimates a KL. Leave update.filter out, or set "
                "placement: loss"
            )
        if self.reward_coef > 0 and run.samples_per_prompt == 1:
            yield (
                f"update.reward_coef = {self.reward_coef:g} with rollout.samples_per_prompt = 1: there is nothing to "
                "compare a reward with, so it does nothing. Take 4 samples or more"
            )
