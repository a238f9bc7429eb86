"""The settings of loss terms, as recipes hold them in ``update.terms``. No torch here."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from rlkl.schema import Section
from rlkl.updates.run_facts import RunFacts
from rlkl.updates.terms.followers import AVERAGE_DECAY, LAG, warnings_about_followers

if TYPE_CHECKING:
    from rlkl.updates.base_settings import RuleSettings

Estimator = Literal["exact", "k1", "k2", "k3", "cauchy_schwarz"]
SAMPLED = ("k1", "k2", "k3")
"""Estimators that read the sampled token alone."""
Direction = Literal["policy_to_model", "model_to_policy"]


class TermSettings(Section):
    """Keys that every term has."""

    term: str = Field(description="The term.")
    name: str | None = Field(
        default=None,
        pattern=r"^[a-z][a-z0-9_]*$",
        description="Name of its curve, loss/<name>; null: from the term.",
    )
    coef: float = Field(default=0.1, description="Weight of the term in the loss.")

    @property
    def default_name(self) -> str:
        """The name of the curve ``loss/<name>`` if the recipe gives none: that of the term, in snake case."""
        return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", self.term.rpartition(":")[2]).lower()

    @property
    def frozen_model(self) -> str | None:
        """The frozen model that the term compares with, its key ``to``: ``reference``, or another."""
        return getattr(self, "to", None)

    @property
    def wording_column(self) -> str | None:
        """The column of the data with another wording of each prompt that the term reads; None: it reads none."""
        return None

    def added_sequences(self, trained: int) -> int:
        """Return how many sequences the term adds to a step that trains on so many, for `rlkl plan`."""
        return 0

    def warnings(self, run: RunFacts, rule: RuleSettings) -> Iterator[str]:
        """Warn about settings that may not do what one expects beside this rule in this run.

        A custom term may warn, too: override this and yield from ``super()``. Each sentence gives the value, the effect
        and what to set instead; rlkl puts the term's key ``update.terms[0]`` in front.
        """
        if self.coef == 0:
            yield "coef = 0: the term costs its computation and does nothing. Leave it out, or set coef"
        elif self.frozen_model == "reference" and rule.pull_to_reference is not None:
            yield (
                "the term compares with the reference, and the rule itself holds the policy near it by "
                f"{rule.pull_to_reference}: both act. Leave the term out, or lower one of the two"
            )


class AnchoredSettings(TermSettings):
    """Keys of a term that compares the policy with a frozen model."""

    coef: float = Field(default=0.1, ge=0, description="Weight of the term in the loss.")
    to: str = Field(default="reference", description="The frozen model: reference, average, lagged, or one of models.")
    average_decay: float = Field(
        default=AVERAGE_DECAY, ge=0, le=1, description="to: average: part of itself that it keeps each optimizer step."
    )
    lag: int = Field(default=LAG, ge=1, description="to: lagged: its least age in optimizer steps; at most 2 lag - 1.")

    def warnings(self, run: RunFacts, rule: RuleSettings) -> Iterator[str]:
        yield from warnings_about_followers(self)
        yield from super().warnings(run, rule)


class KlSettings(AnchoredSettings):
    """KL between the policy and a frozen model, added to the loss."""

    term: Literal["kl"] = Field(default="kl", description="The term.")
    direction: Direction = Field(
        default="policy_to_model", description="KL(policy || model), or KL(model || policy), which covers the model."
    )
    estimator: Estimator = Field(
        default="exact",
        description="Over the vocabulary, or from the sampled token: k1, k2, k3; or cauchy_schwarz (docs/terms.md).",
    )
    top_k: int | None = Field(
        default=None,
        ge=1,
        description="exact: over the model's k likeliest tokens and a tail; null: the whole vocabulary.",
    )
    free_nats: float = Field(default=0.0, ge=0, description="KL per token up to so many nats costs nothing.")
    free_nats_per_sequence: float = Field(
        default=0.0, ge=0, description="KL summed over a response up to so many nats costs nothing."
    )
    target: float | None = Field(
        default=None, gt=0, description="Nats per sequence that coef is steered to; null keeps coef fixed."
    )
    horizon: int = Field(default=10_000, ge=1, description="Sequences over which coef changes by at most a fifth.")

    @model_validator(mode="after")
    def _estimator_fits(self) -> KlSettings:
        if self.estimator != "exact" and self.top_k is not None:
            reads = "one token only" if self.estimator in SAMPLED else "the whole vocabulary"
            raise ValueError(f"top_k = {self.top_k} is for estimator = exact; {self.estimator} reads {reads}")
        if self.estimator == "cauchy_schwarz" and self.direction == "model_to_policy":
            raise ValueError("estimator = cauchy_schwarz is symmetric, so direction means nothing. Leave direction out")
        if self.estimator in SAMPLED and self.direction == "model_to_policy":
            raise ValueError(
                f"estimator = {self.estimator} with direction = model_to_policy: k1, k2 and k3 estimate KL(policy || "
                "model) from the policy's own samples. Take estimator: exact"
            )
        if self.estimator == "k1" and self.free_nats > 0:
            raise ValueError(
                f"free_nats = {self.free_nats:g} with estimator = k1: k1 of a single token is often below 0, and free "
                "nats cut only this side away, so the loss no longer estimates a KL. Take estimator: exact, or set "
                "free_nats: 0"
            )
        if self.estimator == "k1" and self.free_nats_per_sequence > 0:
            raise ValueError(
                f"free_nats_per_sequence = {self.free_nats_per_sequence:g} with estimator = k1: the k1 of a response "
                "spreads far around its mean and is often below 0, so chance decides which responses pass the "
                "allowance. Take estimator: exact, or set free_nats_per_sequence: 0"
            )
        if self.free_nats > 0 and self.free_nats_per_sequence > 0:
            raise ValueError(
                f"free_nats = {self.free_nats:g} and free_nats_per_sequence = {self.free_nats_per_sequence:g} are two "
                "allowances for one KL. Set one of them to 0"
            )
        if self.target is not None and self.coef == 0:
            raise ValueError(
                f"target = {self.target:g} with coef = 0: the coefficient is steered by factors, so it has to start "
                "above 0"
            )
        return self

    @property
    def default_name(self) -> str:
        return f"kl_{self.to}"

    def warnings(self, run: RunFacts, rule: RuleSettings) -> Iterator[str]:
        yield from super().warnings(run, rule)
        source = "data.chosen_column" if run.has_pairs else rule.selection(run)
        if self.estimator in SAMPLED and source is not None:
            kind = "answers that it did not sample" if run.has_pairs else "completions picked by their rewards"
            yield (
                f"estimator = {self.estimator} estimates a KL from tokens that the policy sampled; with {source} it "
                f"trains on {kind}, so the estimate is biased. Take estimator: exact"
            )
        elif self.estimator in SAMPLED and run.samples_ahead:
            yield (
                f"estimator = {self.estimator} estimates a KL from tokens that the policy sampled; with this "
                "rollout.schedule an older policy has sampled them, so the estimate is biased. Take estimator: exact"
            )


class EntropySettings(TermSettings):
    """Entropy of the policy's next-token distribution."""

    term: Literal["entropy"] = Field(default="entropy", description="The term.")
    coef: float = Field(default=0.01, description="Above 0 raises the entropy (a bonus), below 0 lowers it.")

    @property
    def default_name(self) -> str:
        return "entropy_bonus"

    def warnings(self, run: RunFacts, rule: RuleSettings) -> Iterator[str]:
        yield from super().warnings(run, rule)
        if self.coef != 0 and rule.weight_of_entropy is not None:
            yield (
                f"the rule itself changes the entropy by {rule.weight_of_entropy}, and the term does too: both act. "
                "Leave the term out, or set the other to 0"
            )
