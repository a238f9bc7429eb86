"""The settings of SuperHF. No torch here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from pydantic import Field

from rlkl.updates.base_settings import FilterSettings, RuleSettings, most_kept, warnings_about_no_reference
from rlkl.updates.run_facts import RunFacts


class SuperHfSettings(RuleSettings):
    """SuperHF: cross-entropy on the best completions plus KL(reference || policy) (`rlkl.updates.superhf`)."""

    learns_from_pairs: ClassVar[bool] = True
    is_best_of_n: ClassVar[bool] = True

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

    @property
    def own_terms(self) -> frozenset[str]:
        return frozenset({"cross_entropy", "kl"} if self.kl_coef > 0 else {"cross_entropy"})

    def warnings(self, run: RunFacts) -> Iterator[str]:
        samples = 2 if run.has_pairs else run.samples_per_prompt
        kept = most_kept(self.filter, samples)
        if run.has_pairs:
            yield from self._warnings_about_pairs(run, kept)
        elif kept == samples and (self.filter is None or self.filter.keep != "threshold"):
            yield (
                f"update.filter keeps every completion of a prompt ({samples}): rewards then decide nothing, and the "
                "policy only imitates itself. Raise rollout.samples_per_prompt (16 in the paper), or keep fewer"
            )
        sequences = kept * run.prompts_per_step // run.minibatches
        if self.compat and self.kl_coef > 0 and sequences > 2:
            yield (
                f"update.compat sums the KL over up to {sequences} sequences of an optimizer step: update.kl_coef = "
                f"{self.kl_coef:g} acts as {sequences * self.kl_coef:g}. The paper's main runs had 2 sequences a "
                "step; raise learner.minibatches"
            )
        yield from warnings_about_no_reference(run, self, self.kl_coef)

    def _warnings_about_pairs(self, run: RunFacts, kept: int) -> Iterator[str]:
        threshold = self.filter.value if self.filter is not None and self.filter.keep == "threshold" else None
        if (kept == 2 and threshold is None) or (threshold is not None and threshold <= 0):
            yield (
                "update.filter keeps the rejected answers too (their reward is 0), so the policy learns them like the "
                "chosen ones. Set update.filter: {keep: top_k, value: 1}"
            )
        if threshold is not None and threshold > 1:
            yield (
                f"update.filter.value = {threshold:g} keeps no answer: a chosen one has reward 1. Set update.filter: "
                "{keep: top_k, value: 1}"
            )
        if run.has_rewards:
            yield "rewards are named, but nothing is sampled with data.chosen_column, so none of them is called"
