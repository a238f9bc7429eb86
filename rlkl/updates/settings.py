"""The ``update`` section of the recipe, one class a rule. No torch here: recipes are checked before anything loads."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rlkl.schema import Section

KlEstimator = Literal["k1", "k2", "k3"]
Advantage = Literal["group_std", "group_mean", "leave_one_out"]
Ratio = Literal["token", "sequence_mean", "sequence_sum"]
Surrogate = Literal["clip", "truncated_weight"]
Aggregation = Literal["sequence_mean", "token_mean", "sequence_sum", "sequence_sum_over_limit"]


class GrpoSettings(Section):
    """GRPO and its named variants. A key left out takes the variant's value (see ``rlkl/updates/grpo.md``)."""

    rule: Literal["grpo"] = Field("grpo", description="The update rule.")
    variant: Literal["grpo", "dr_grpo", "dapo", "gspo", "cispo", "rloo"] = Field(
        "grpo", description="A named set of the choices below, as its paper made them."
    )
    advantage: Advantage | None = Field(
        None, description="Baseline and scale: group mean and std, group mean only, or mean of the other samples."
    )
    ratio: Ratio | None = Field(None, description="Importance ratio per token, or per sequence (mean or sum of log-ratios).")
    surrogate: Surrogate | None = Field(
        None, description="PPO's clipped surrogate, or CISPO's truncated weight on the log-probability."
    )
    aggregation: Aggregation | None = Field(None, description="How per-token losses become one number.")
    clip_low: float | None = Field(None, gt=0, description="The ratio is clipped below 1 - clip_low.")
    clip_high: float | None = Field(None, gt=0, description="The ratio is clipped above 1 + clip_high.")
    drop_uniform_groups: bool | None = Field(
        None, description="Leave out groups whose rewards are all equal (DAPO's dynamic sampling)."
    )
    mask_truncated: bool = Field(False, description="Completions cut off at max_new_tokens give no gradient.")
    kl_coef: float = Field(0.0, ge=0, description="Weight of the KL to the reference; 0 means none.")
    kl_estimator: KlEstimator = Field("k3", description="Per-token KL estimator.")
    kl_placement: Literal["loss", "reward"] = Field("loss", description="KL as a loss term, or taken off the reward.")


UpdateSettings = GrpoSettings
"""The settings of any rule. A second rule makes this a union told apart by ``rule``."""
