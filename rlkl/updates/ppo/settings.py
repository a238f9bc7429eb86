"""The settings of PPO. No torch here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from rlkl.updates.base_settings import CorrectedSettings, warnings_about_no_reference
from rlkl.updates.dro.settings import DroGroups
from rlkl.updates.run_facts import RunFacts


class PpoSettings(CorrectedSettings):
    """PPO with a value function (see ``rlkl/updates/ppo/README.md``)."""

    dro_groups: ClassVar[DroGroups | None] = "all"

    rule: Literal["ppo"] = Field(default="ppo", description="The update rule.")
    kl_coef: float = Field(default=0.05, ge=0, description="Per-token KL to the reference, taken off the reward.")
    kl_target: float | None = Field(
        default=None, gt=0, description="Nats per sequence that kl_coef is steered to; None keeps it fixed."
    )
    kl_horizon: int = Field(default=10_000, ge=1, description="Sequences over which the steering acts.")
    kl_gain: float = Field(
        default=0.0, ge=0, le=4, description="How strongly kl_coef also answers at once to the KL's relative error."
    )
    gae_lambda: float = Field(default=0.95, ge=0, le=1, description="GAE's lambda.")
    discount: float = Field(default=1.0, gt=0, le=1, description="Discount per token.")
    clip: float = Field(default=0.2, gt=0, description="The ratio is clipped to 1 - clip and 1 + clip.")
    value_clip: float | None = Field(
        default=0.2, gt=0, description="Values move at most this far per step; None: free."
    )
    value_coef: float = Field(default=0.1, ge=0, description="Weight of the value loss.")
    value_lr_scale: float = Field(default=1.0, gt=0, description="The values' learning rate, in units of learner.lr.")
    critic: Literal["head", "model", "none"] = Field(
        default="head", description="A value head on the policy, a separate model, or no values (REINFORCE)."
    )
    whiten: bool = Field(default=True, description="Advantages to mean 0 and variance 1 over the whole batch.")

    @property
    def keeps_reference(self) -> bool:
        return self.kl_coef > 0

    @property
    def own_terms(self) -> frozenset[str]:
        return frozenset({"policy"} if self.critic == "none" else {"policy", "value"})

    @model_validator(mode="after")
    def _steered_coefficient_is_positive(self) -> PpoSettings:
        if self.kl_target is not None and self.kl_coef == 0:
            raise ValueError(
                f"kl_target = {self.kl_target} with kl_coef = 0: the coefficient is steered by factors, so it has to "
                "start above 0. Set kl_coef, or leave kl_target out"
            )
        return self

    def warnings(self, run: RunFacts) -> Iterator[str]:
        if self.critic == "none" and self.gae_lambda < 1:
            yield (
                f"update.critic = none with update.gae_lambda = {self.gae_lambda:g}: without values lambda is but one "
                "more discount, and early tokens hardly see the reward. gae_lambda=1 is REINFORCE"
            )
        if self.critic == "none" and not self.whiten:
            yield (
                "update.critic = none with update.whiten = false: rewards have no baseline, so where all are positive "
                "every sampled token is reinforced. Set whiten, or take a critic"
            )
        yield from warnings_about_no_reference(run, self, self.kl_coef)
