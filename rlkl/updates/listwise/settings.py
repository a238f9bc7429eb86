"""The settings of the rule listwise. No torch here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from rlkl.updates.base_settings import RuleSettings, most_kept
from rlkl.updates.run_facts import RunFacts

TauUnit = Literal["group_std", "reward"]
OverTokens = Literal["sum", "mean"]


class ListwiseSettings(RuleSettings):
    """Plackett-Luce over all completions of a prompt, ordered by reward (see ``rlkl/updates/listwise/README.md``)."""

    rule: Literal["listwise"] = Field(default="listwise", description="The update rule.")
    beta: float = Field(default=0.1, gt=0, description="Scale of the implicit reward.")
    over_tokens: OverTokens = Field(
        default="sum", description="Implicit reward: log-ratios summed over a completion's tokens, or their mean."
    )
    tau: float = Field(
        default=1.0, gt=0, description="Softness of the weights softmax(reward / tau): small is the best one alone."
    )
    tau_unit: TauUnit = Field(
        default="group_std", description="Unit of tau: the standard deviation of the group's rewards, or reward 1."
    )
    min_gap: float = Field(default=0.0, ge=0, description="Groups whose best and worst differ by no more are skipped.")

    @property
    def own_terms(self) -> frozenset[str]:
        return frozenset({"listwise"})

    @property
    def pull_to_reference(self) -> str:
        return f"update.beta = {self.beta:g}"

    def sequences_together(self, samples: int) -> int:
        return most_kept(self.filter, samples)

    def warnings(self, run: RunFacts) -> Iterator[str]:
        if most_kept(self.filter, run.samples_per_prompt) == 1:
            yield (
                "update.rule = listwise orders the completions of a prompt, and at most 1 reaches it "
                f"(rollout.samples_per_prompt = {run.samples_per_prompt}, after update.filter): nothing is learned. "
                "Take 2 or more"
            )
