"""The settings of GRPO and its variants. No torch here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from rlkl.updates.base_settings import CorrectedSettings, most_kept, warnings_about_no_reference
from rlkl.updates.dro.settings import DroGroups
from rlkl.updates.run_facts import RunFacts

KlEstimator = Literal["k1", "k2", "k3"]
KlPlacement = Literal["loss", "reward"]
Advantage = Literal["group_std", "group_mean", "leave_one_out"]
Ratio = Literal["token", "sequence_mean", "sequence_sum"]
Surrogate = Literal["clip", "truncated_weight"]
Aggregation = Literal["sequence_mean", "token_mean", "sequence_sum", "sequence_sum_over_limit"]
GrpoVariant = Literal["grpo", "dr_grpo", "dapo", "gspo", "cispo", "rloo"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GrpoChoices:
    """The choices that distinguish the variants of GRPO. A clip of None leaves that side of the ratio free."""

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
"""Each variant as its paper made it; the papers are named in ``rlkl/updates/grpo/README.md``."""

_NULL_IS_A_VALUE = frozenset({"clip_low", "clip_high"})
"""Keys of GRPO whose null means "not clipped", not "as the variant has it"."""

KL_ESTIMATORS: dict[KlPlacement, tuple[KlEstimator, ...]] = {"loss": ("k3", "k2"), "reward": ("k1",)}
"""Estimators whose gradient is a KL's where they are placed; the first is taken when the recipe names none."""


class GrpoSettings(CorrectedSettings):
    """GRPO and its named variants. A key left out takes the variant's value (see ``rlkl/updates/grpo/README.md``).

    Of `clip_low` and `clip_high`, null is a value of its own, so that a dump leaves out what was left out.
    """

    dro_groups: ClassVar[DroGroups | None] = "with_spread"

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
    clip_low: float | None = Field(
        default=None, gt=0, description="The ratio is clipped below 1 - clip_low; null: not clipped below."
    )
    clip_high: float | None = Field(
        default=None, gt=0, description="The ratio is clipped above 1 + clip_high; null: not clipped above."
    )
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

    def variant_choices(self) -> GrpoChoices:
        """Return the variant's choices."""
        return GRPO_VARIANTS[self.variant]

    @property
    def keeps_reference(self) -> bool:
        return self.kl_coef > 0

    @property
    def own_terms(self) -> frozenset[str]:
        has_kl_term = self.kl_coef > 0 and self.kl_placement == "loss"
        return frozenset({"policy", "kl"} if has_kl_term else {"policy"})

    def choices(self) -> GrpoChoices:
        """Return the variant's choices with the recipe's own on top."""
        own: dict[str, Any] = {name: getattr(self, name) for name in GrpoChoices.__slots__}
        taken = {name for name, value in own.items() if value is not None} | (self.model_fields_set & _NULL_IS_A_VALUE)
        return replace(self.variant_choices(), **{name: own[name] for name in taken})

    @model_serializer(mode="wrap")
    def _leave_out_what_was_left_out(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        left_out = _NULL_IS_A_VALUE - self.model_fields_set
        return {name: value for name, value in dump(self).items() if name not in left_out}

    def estimator(self) -> KlEstimator:
        """Return the recipe's KL estimator, or the usual one for the placement of the KL."""
        return self.kl_estimator or KL_ESTIMATORS[self.kl_placement][0]

    def resolved(self) -> GrpoSettings:
        """Return these settings with every key filled in, for people to read. A clip still None means: not clipped."""
        return self.model_copy(update={**asdict(self.choices()), "kl_estimator": self.estimator()})

    def warnings(self, run: RunFacts) -> Iterator[str]:
        yield from self._about_the_baseline(run)
        yield from self._about_the_ratio(run)
        yield from warnings_about_no_reference(run, self, self.kl_coef)

    def _about_the_baseline(self, run: RunFacts) -> Iterator[str]:
        """Warn if the group leaves nothing to compare."""
        choices, samples = self.choices(), run.samples_per_prompt
        if samples == 1:
            yield (
                "rollout.samples_per_prompt = 1: a reward is compared with the others of its prompt, and there are "
                "none, so every advantage is 0 and nothing is learned. Take 4 or more"
            )
        if samples > 1 and most_kept(self.filter, samples) == 1:
            yield (
                "update.filter keeps one completion of a prompt, and its reward is compared with the others that are "
                "kept: there are none, so every advantage is 0 and nothing is learned. Keep more"
            )
        if samples == 2 and choices.advantage == "group_std":
            yield (
                "rollout.samples_per_prompt = 2 with update.advantage = group_std: dividing by the spread of two "
                "rewards leaves only which is higher; the size of the difference is lost. Take more, or group_mean"
            )
        if choices.drop_uniform_groups and run.max_rounds == 1:
            yield (
                "update.drop_uniform_groups with rollout.max_rounds = 1: groups of equal rewards are dropped and not "
                "replaced, so batches shrink. rollout.max_rounds=4 fills them up"
            )

    def _about_the_ratio(self, run: RunFacts) -> Iterator[str]:
        """Warn about clipping that does not act, or is missing."""
        choices, steps = self.choices(), run.epochs * run.minibatches
        own_clip = self.clip_low is not None or self.clip_high is not None
        if steps == 1 and own_clip:
            yield (
                "update.clip_low and clip_high: with one optimizer step per batch the importance ratio is exactly 1 "
                "and is never clipped. They act from learner.epochs or learner.minibatches = 2 on"
            )
        if steps > 1 and choices.surrogate == "clip" and choices.clip_low is None and choices.clip_high is None:
            yield (
                f"update.variant = {self.variant} with {steps} optimizer steps per batch: from the second on the "
                "samples are off-policy and nothing bounds the importance ratio. Set update.clip_low and clip_high, "
                "or take one step"
            )
        if steps > 1 and choices.surrogate == "truncated_weight" and choices.clip_low is None:
            yield (
                f"update.variant = {self.variant} with {steps} optimizer steps per batch: importance weights are "
                "bounded from above only, and tokens that became unlikely fade out of the gradient"
            )
