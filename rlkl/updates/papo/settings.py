"""The settings of PAPO. No torch here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field, model_validator

from rlkl.schema import Section
from rlkl.updates.grpo.settings import GrpoChoices, GrpoSettings
from rlkl.updates.run_facts import RunFacts

PAPO_GRPO = GrpoChoices(aggregation="token_mean", clip_high=0.3)
"""The choices of the GRPO baseline in PAPO's paper (arXiv 2507.06448)."""


class CorruptionSettings(Section):
    """The corruption of a rule's pictures; see `rlkl.data.corruption`."""

    kind: Literal["patches", "black", "noise", "saliency"] = Field(
        default="patches",
        description="Black cells drawn at random, all black, Gaussian noise, or black where it looks.",
    )
    fraction: float = Field(
        default=0.6, ge=0, le=1, description="Chance of each cell to turn black; share of the cells for saliency."
    )
    cell: int = Field(default=14, ge=1, description="Side of a cell in pixels of the original picture.")
    noise_std: float = Field(default=0.6, ge=0, description="Standard deviation of the noise; colours lie in 0 to 1.")


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
        """Return GRPO's; ``grpo`` averages over tokens and clips from 0.2 below to 0.3 above, as PAPO's code does."""
        return PAPO_GRPO if self.variant == "grpo" else super().variant_choices()

    @property
    def own_terms(self) -> frozenset[str]:
        return super().own_terms | {"perception", "entropy", "corrupted_entropy"}

    def warnings(self, run: RunFacts) -> Iterator[str]:
        yield from super().warnings(run)
        if self.corrupted_entropy_coef > 0 and not self.recompute:
            yield (
                "update.corrupted_entropy_coef without update.recompute: the corrupted log-probs are constants, so "
                "this term shows in the logged loss and trains nothing (so it is in the paper's released code, too)"
            )
        if self.perception_coef > 0 and self.kl_coef == 0 and self.entropy_coef == 0:
            yield (
                f"update.perception_coef = {self.perception_coef:g} with neither update.kl_coef nor "
                "update.entropy_coef: nothing keeps the policy from raising the perception KL by odd tokens. The paper "
                "takes perception_coef 0.01 and entropy_coef 0.03 where there is no KL to the reference"
            )
