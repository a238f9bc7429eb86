"""The ``update`` section of the recipe, one class a rule. No torch here: recipes are checked before anything loads."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Literal

from pydantic import Field, model_validator

from rlkl.schema import Section

KlEstimator = Literal["k1", "k2", "k3"]
KlPlacement = Literal["loss", "reward"]
Advantage = Literal["group_std", "group_mean", "leave_one_out"]
Ratio = Literal["token", "sequence_mean", "sequence_sum"]
Surrogate = Literal["clip", "truncated_weight"]
Aggregation = Literal["sequence_mean", "token_mean", "sequence_sum", "sequence_sum_over_limit"]
GrpoVariant = Literal["grpo", "dr_grpo", "dapo", "gspo", "cispo", "rloo"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GrpoChoices:
    """What tells the variants of GRPO apart, nothing left open. A clip of None leaves that side of the ratio free."""

    advantage: Advantage = "group_std"
    ratio: Ratio = "token"
    surrogate: Surrogate = "clip"
    aggregation: Aggregation = "sequence_mean"
    clip_low: float | None = 0.2
    clip_high: float | None = 0.2
    drop_uniform_groups: bool = False


GRPO_VARIANTS: dict[GrpoVariant, GrpoChoices] = {
    "grpo": GrpoChoices(),
    "dr_grpo": GrpoChoices(advantage="group_mean", aggregation="sequence_sum_over_limit"),
    "dapo": GrpoChoices(aggregation="token_mean", clip_high=0.28, drop_uniform_groups=True),
    "gspo": GrpoChoices(ratio="sequence_mean", clip_low=3e-4, clip_high=4e-4),
    # A weight of at most 5 and no lower bound: MiniMax-M1 publishes no bound, 5 is ScaleRL's (arXiv 2510.13786).
    "cispo": GrpoChoices(surrogate="truncated_weight", aggregation="token_mean", clip_low=None, clip_high=4.0),
    "rloo": GrpoChoices(
        advantage="leave_one_out", ratio="sequence_sum", aggregation="sequence_sum", clip_low=None, clip_high=None
    ),
}
"""Each variant as its paper made it; the papers are named in ``rlkl/updates/grpo.md``."""

KL_ESTIMATORS: dict[KlPlacement, tuple[KlEstimator, ...]] = {"loss": ("k3", "k2"), "reward": ("k1",)}
"""Estimators whose gradient is a KL's where they are placed; the first is taken when the recipe names none."""


class GrpoSettings(Section):
    """GRPO and its named variants. A key left out takes the variant's value (see ``rlkl/updates/grpo.md``)."""

    rule: Literal["grpo"] = Field(default="grpo", description="The update rule.")
    variant: GrpoVariant = Field(
        default="grpo", description="A named set of the choices below, as its paper made them."
    )
    advantage: Advantage | None = Field(
        default=None,
        description="Baseline and scale: group mean and std, group mean only, or mean of the other samples.",
    )
    ratio: Ratio | None = Field(
        default=None, description="Importance ratio per token, or per sequence (mean or sum of log-ratios)."
    )
    surrogate: Surrogate | None = Field(
        default=None, description="PPO's clipped surrogate, or CISPO's truncated weight on the log-probability."
    )
    aggregation: Aggregation | None = Field(default=None, description="How per-token losses become one number.")
    clip_low: float | None = Field(default=None, gt=0, description="The ratio is clipped below 1 - clip_low.")
    clip_high: float | None = Field(default=None, gt=0, description="The ratio is clipped above 1 + clip_high.")
    drop_uniform_groups: bool | None = Field(
        default=None, description="Leave out groups whose rewards are all equal (DAPO's dynamic sampling)."
    )
    mask_truncated: bool = Field(default=False, description="Completions cut off at max_new_tokens give no gradient.")
    kl_coef: float = Field(default=0.0, ge=0, description="Weight of the KL to the reference; 0 means none.")
    kl_estimator: KlEstimator | None = Field(
        default=None, description="Per-token KL estimator: k3 or k2 in the loss (k3 when left out), k1 in the reward."
    )
    kl_placement: KlPlacement = Field(default="loss", description="KL as a loss term, or taken off the reward.")

    @model_validator(mode="after")
    def _estimator_has_a_gradient(self) -> GrpoSettings:
        if self.kl_estimator in (None, *KL_ESTIMATORS[self.kl_placement]):
            return self
        if self.kl_placement == "loss":
            raise ValueError(
                "kl_estimator = k1 does nothing in the loss: on the policy's own samples its gradient is zero in "
                "expectation, pure noise. Take k3 or k2, or set kl_placement: reward"
            )
        raise ValueError(
            f"kl_estimator = {self.kl_estimator} hardly acts in the reward: there only its value counts, and near the "
            "reference the policy gradient of that value cancels. Take k1, or set kl_placement: loss"
        )

    def choices(self) -> GrpoChoices:
        """The variant's choices with the recipe's own on top."""
        own = self.model_dump(include=set(asdict(GRPO_VARIANTS[self.variant])), exclude_none=True)
        return replace(GRPO_VARIANTS[self.variant], **own)

    def estimator(self) -> KlEstimator:
        """The recipe's KL estimator, or the usual one for where the KL is placed."""
        return self.kl_estimator or KL_ESTIMATORS[self.kl_placement][0]

    def resolved(self) -> GrpoSettings:
        """These settings with every key filled in, for people to read. A clip still None means: not clipped."""
        return self.model_copy(update={**asdict(self.choices()), "kl_estimator": self.estimator()})


UpdateSettings = GrpoSettings
"""The settings of any rule. A second rule makes this a union told apart by ``rule``."""
