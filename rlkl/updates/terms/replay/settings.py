"""The settings of the term ``replay``. No torch here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from rlkl.updates.run_facts import RunFacts
from rlkl.updates.terms.settings import TermSettings

if TYPE_CHECKING:
    from rlkl.updates.base_settings import RuleSettings

ReplayLoss = Literal["margin", "kl", "cross_entropy"]


class ReplaySettings(TermSettings):
    """General samples, replayed beside the rollouts, so that the policy keeps what it knew about them."""

    term: Literal["replay"] = Field(default="replay", description="The term.")
    coef: float = Field(default=1.0, ge=0, description="Weight of the term in the loss.")
    states: str = Field(default="", description="The folder that `rlkl replay-states` wrote.")
    loss: ReplayLoss = Field(
        default="margin",
        description="Margin on hidden states, KL(reference || policy), or cross-entropy on the replayed texts.",
    )
    weight: Literal["fixed", "dynamic"] = Field(
        default="fixed",
        description="margin: coef as it is, or times the cross-entropy over the margin (docs/replay.md).",
    )
    sequences: int = Field(default=8, ge=1, description="Samples that are drawn for each step.")
    cross_entropy_coef: float = Field(
        default=0.0, ge=0, description="Weight of the samples' cross-entropy beside margin or kl."
    )

    @model_validator(mode="after")
    def _settings_fit(self) -> ReplaySettings:
        if not self.states:
            raise ValueError(
                "states is not set: name the folder that `rlkl replay-states MODEL DATA --output DIR` wrote"
            )
        if self.weight == "dynamic" and self.loss != "margin":
            raise ValueError(
                f"weight = dynamic with loss = {self.loss}: it sets the margin's weight. Take loss: margin, or set "
                "weight: fixed"
            )
        if self.cross_entropy_coef > 0 and self.loss == "cross_entropy":
            raise ValueError(
                f"cross_entropy_coef = {self.cross_entropy_coef:g} with loss = cross_entropy: coef is the weight of "
                "the cross-entropy already. Set cross_entropy_coef: 0"
            )
        return self

    @property
    def frozen_model(self) -> str | None:
        """The reference, if the loss is a KL to it."""
        return "reference" if self.loss == "kl" else None

    def added_sequences(self, trained: int) -> int:
        return self.sequences

    def warnings(self, run: RunFacts, rule: RuleSettings) -> Iterator[str]:
        if self.coef == 0 and self.cross_entropy_coef == 0:
            yield "coef = 0: the term costs its computation and does nothing. Leave it out, or set coef"
        if self.sequences < run.minibatches:
            yield (
                f"sequences = {self.sequences} is less than learner.minibatches = {run.minibatches}, so some optimizer "
                "steps replay nothing. Raise sequences"
            )
        if self.loss == "margin" and self.coef > 0 and run.epochs * run.minibatches > 1:
            yield (
                f"loss = margin with learner.epochs * learner.minibatches = {run.epochs * run.minibatches} optimizer "
                "steps a batch: all divide by the share of violations at the start of the first, and the loss has no "
                "upper limit if that is near 0 and grows. Watch optim/grad_norm, set epochs and minibatches to 1, or "
                "take loss: kl"
            )
