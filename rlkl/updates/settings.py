"""The ``update`` section of the recipe, one class a rule. No torch here: recipes are checked before anything loads."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from rlkl.schema import Section
from rlkl.updates.terms.custom import TermEntry

KlEstimator = Literal["k1", "k2", "k3"]
KlPlacement = Literal["loss", "reward"]
Advantage = Literal["group_std", "group_mean", "leave_one_out"]
Ratio = Literal["token", "sequence_mean", "sequence_sum"]
Surrogate = Literal["clip", "truncated_weight"]
Aggregation = Literal["sequence_mean", "token_mean", "sequence_sum", "sequence_sum_over_limit"]
TokenMask = Literal["none", "ones", "mapo", "sparse_common", "sparse_independent"]
MaskedTerms = Literal["both", "reward", "kl"]
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
"""Each variant as its paper made it; the papers are named in ``rlkl/updates/grpo/README.md``."""

PAPO_GRPO = GrpoChoices(aggregation="token_mean", clip_high=0.3)
"""What PAPO's authors ran as GRPO (arXiv 2507.06448)."""

_NULL_IS_A_VALUE = frozenset({"clip_low", "clip_high"})
"""Keys of GRPO whose null means "not clipped", not "as the variant has it"."""

KL_ESTIMATORS: dict[KlPlacement, tuple[KlEstimator, ...]] = {"loss": ("k3", "k2"), "reward": ("k1",)}
"""Estimators whose gradient is a KL's where they are placed; the first is taken when the recipe names none."""


class FilterSettings(Section):
    """Which rollouts of each prompt reach the rule; see `rlkl.updates.filters`."""

    keep: Literal["top_k", "threshold", "top_fraction"] = Field(
        default="top_k", description="The best few of each prompt, those of at least a reward, or the best share."
    )
    value: float = Field(
        default=1.0, description="How many (top_k), which reward (threshold), or which share (0 to 1)."
    )

    @model_validator(mode="after")
    def _value_fits(self) -> FilterSettings:
        if self.keep == "top_k" and not (self.value >= 1 and self.value.is_integer()):
            raise ValueError(f"value = {self.value} with keep = top_k: take a whole number of completions, at least 1")
        if self.keep == "top_fraction" and not 0 < self.value <= 1:
            raise ValueError(f"value = {self.value} with keep = top_fraction: take a share above 0 and at most 1")
        if not math.isfinite(self.value):
            raise ValueError(f"value = {self.value} with keep = threshold: take a finite reward")
        return self


class CorruptionSettings(Section):
    """How a rule's pictures are corrupted; see `rlkl.data.corruption`."""

    kind: Literal["patches", "black", "noise", "saliency"] = Field(
        default="patches",
        description="Black cells drawn at random, all black, Gaussian noise, or black where it looks.",
    )
    fraction: float = Field(
        default=0.6, ge=0, le=1, description="Chance of each cell to turn black; share of the cells for saliency."
    )
    cell: int = Field(default=14, ge=1, description="Side of a cell in pixels of the original picture.")
    noise_std: float = Field(default=0.6, ge=0, description="Standard deviation of the noise; colours lie in 0 to 1.")


class RuleSettings(Section):
    """What every rule has."""

    learns_from_pairs: ClassVar[bool] = False
    """Whether completions that the policy did not sample will do: chosen and rejected ones from a data set."""

    filter: FilterSettings | None = Field(default=None, description="Which rollouts of each prompt the rule sees; all.")
    terms: list[TermEntry] = Field(
        default_factory=list, description="Terms to add to the rule's loss: kl, masked_kl, entropy, or your own."
    )

    @property
    def keeps_reference(self) -> bool:
        """Whether the learner keeps the frozen reference for this rule."""
        return True

    def resolved(self) -> RuleSettings:
        """These settings with every key filled in, for people to read."""
        return self


class GrpoSettings(RuleSettings):
    """GRPO and its named variants. A key left out takes the variant's value (see ``rlkl/updates/grpo/README.md``).

    Of `clip_low` and `clip_high`, null is a value of its own, so that a dump leaves out what was left out.
    """

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
        """What the variant chooses."""
        return GRPO_VARIANTS[self.variant]

    @property
    def keeps_reference(self) -> bool:
        return self.kl_coef > 0

    def choices(self) -> GrpoChoices:
        """The variant's choices with the recipe's own on top."""
        own: dict[str, Any] = {name: getattr(self, name) for name in GrpoChoices.__slots__}
        taken = {name for name, value in own.items() if value is not None} | (self.model_fields_set & _NULL_IS_A_VALUE)
        return replace(self.variant_choices(), **{name: own[name] for name in taken})

    @model_serializer(mode="wrap")
    def _leave_out_what_was_left_out(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        left_out = _NULL_IS_A_VALUE - self.model_fields_set
        return {name: value for name, value in dump(self).items() if name not in left_out}

    def estimator(self) -> KlEstimator:
        """The recipe's KL estimator, or the usual one for where the KL is placed."""
        return self.kl_estimator or KL_ESTIMATORS[self.kl_placement][0]

    def resolved(self) -> GrpoSettings:
        """These settings with every key filled in, for people to read. A clip still None means: not clipped."""
        return self.model_copy(update={**asdict(self.choices()), "kl_estimator": self.estimator()})


class PapoSettings(GrpoSettings):
    """PAPO: GRPO or DAPO plus implicit perception KL and double entropy (see ``rlkl/updates/papo/README.md``)."""

    rule: Literal["papo"] = Field(default="papo", description="The update rule.")
    kl_coef: float = Field(default=0.01, ge=0, description="Weight of the KL to the reference; 0 means none.")
    perception_coef: float = Field(default=0.02, ge=0, description="gamma: weight of the perception KL, maximised.")
    entropy_coef: float = Field(default=0.0, ge=0, description="eta1: weight of the clean image's entropy, minimised.")
    corrupted_entropy_coef: float = Field(
        default=0.0, ge=0, description="eta2: weight of the corrupted image's entropy, minimised; needs recompute."
    )
    corruption: CorruptionSettings = Field(
        default_factory=lambda: CorruptionSettings(), description="How the pictures are corrupted."
    )
    recompute: bool = Field(
        default=False, description="Corrupted log-probs anew, with gradient, in each pass instead of once a step."
    )
    anneal_to: float | None = Field(
        default=None, ge=0, description="gamma falls linearly to this; both entropy weights shrink with it."
    )
    anneal_over: float = Field(default=0.5, gt=0, le=1, description="Share of the run over which gamma falls.")

    @model_validator(mode="after")
    def _annealing_falls(self) -> PapoSettings:
        if self.anneal_to is not None and self.anneal_to >= self.perception_coef:
            raise ValueError(
                f"anneal_to = {self.anneal_to} is not below perception_coef = {self.perception_coef}, from which gamma "
                "starts to fall. Lower anneal_to, or leave it out to keep gamma fixed"
            )
        return self

    def variant_choices(self) -> GrpoChoices:
        """As GRPO's, but ``grpo`` averages over tokens and clips from 0.2 below to 0.3 above, as PAPO's code does."""
        return PAPO_GRPO if self.variant == "grpo" else super().variant_choices()


class PpoSettings(RuleSettings):
    """PPO with a value function (see ``rlkl/updates/ppo/README.md``)."""

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

    @model_validator(mode="after")
    def _steered_coefficient_is_positive(self) -> PpoSettings:
        if self.kl_target is not None and self.kl_coef == 0:
            raise ValueError(
                f"kl_target = {self.kl_target} with kl_coef = 0: the coefficient is steered by factors, so it has to "
                "start above 0. Set kl_coef, or leave kl_target out"
            )
        return self


class SuperHfSettings(RuleSettings):
    """SuperHF: cross-entropy on the best completions plus KL(reference || policy) (`rlkl.updates.superhf`)."""

    rule: Literal["superhf"] = Field(default="superhf", description="The update rule.")
    filter: FilterSettings | None = Field(
        default_factory=lambda: FilterSettings(), description="Which completions are learned from; the best per prompt."
    )
    kl_coef: float = Field(default=0.35, ge=0, description="beta: weight of the exact KL(reference || policy).")
    kl_top_k: int | None = Field(
        default=None, ge=1, description="KL over the reference's k likeliest tokens and a tail; None: the vocabulary."
    )
    compat: bool = Field(
        default=False,
        description="As the reference code: KL summed over the optimizer step and one position late, no EOS.",
    )

    @property
    def keeps_reference(self) -> bool:
        return self.kl_coef > 0


class SparsePoSettings(RuleSettings):
    """SparsePO and its special cases DPO, TDPO1 and MaPO (see ``rlkl/updates/sparsepo/README.md``)."""

    learns_from_pairs: ClassVar[bool] = True
    rule: Literal["sparsepo"] = Field(default="sparsepo", description="The update rule.")
    mask: TokenMask = Field(default="sparse_common", description="Token masks: none is DPO, ones is TDPO1.")
    beta: float = Field(default=0.1, gt=0, description="Scale of the implicit reward.")
    masked_terms: MaskedTerms = Field(
        default="both", description="Which terms the mask weighs; the other one counts in full."
    )
    mask_init: Literal["paper", "ones"] = Field(
        default="ones", description="Heads' start: the paper's random one, or masks of 1 (training starts at TDPO1)."
    )
    l1_reward: float = Field(default=0.0, ge=0, description="L1 weight on the reward mask.")
    l1_kl: float = Field(default=0.0, ge=0, description="L1 weight on the KL mask.")
    mask_weight_decay: float = Field(default=0.01, ge=0, description="AdamW's weight decay on the heads' matrices.")
    kl_top_k: int | None = Field(
        default=None, ge=1, description="KL over the reference's k likeliest tokens and a tail; None: the vocabulary."
    )
    min_gap: float = Field(default=0.0, ge=0, description="Groups whose best and worst differ by no more are skipped.")


UpdateSettings = Annotated[
    GrpoSettings | PapoSettings | PpoSettings | SuperHfSettings | SparsePoSettings, Field(discriminator="rule")
]
"""The settings of any rule, told apart by ``rule``."""
