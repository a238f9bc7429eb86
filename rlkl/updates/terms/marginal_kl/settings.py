"""The settings of the term ``marginal_kl``. No torch here."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from rlkl.updates.terms.settings import TermSettings


class MarginalKlSettings(TermSettings):
    """KL of the mean answer of all prompts to a prior."""

    term: Literal["marginal_kl"] = Field(default="marginal_kl", description="The term.")
    coef: float = Field(default=0.01, ge=0, description="Weight of the term in the loss.")
    token_ids: list[int] = Field(default_factory=list, description="Token ids of the answers, such as A, B, C and D.")
    prior: list[float] | None = Field(default=None, description="Share of each answer; null: all alike.")
    memory: float = Field(default=0.9, ge=0, lt=1, description="Part of the mean answer that a step leaves as it was.")

    @model_validator(mode="after")
    def _prior_fits(self) -> MarginalKlSettings:
        if len(set(self.token_ids)) < max(len(self.token_ids), 2):
            raise ValueError(f"token_ids = {self.token_ids}: name the token ids of two answers or more, each once")
        if self.prior is not None and (len(self.prior) != len(self.token_ids) or min(self.prior) <= 0):
            raise ValueError(
                f"prior = {self.prior}: give one share above 0 for each of the {len(self.token_ids)} token_ids"
            )
        return self

    @property
    def prior_shares(self) -> list[float]:
        """The prior, divided by its sum."""
        prior = self.prior or [1.0] * len(self.token_ids)
        return [share / sum(prior) for share in prior]
