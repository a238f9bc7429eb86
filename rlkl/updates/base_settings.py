"""Settings that all rules share. No torch here."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from rlkl.schema import Section
from rlkl.updates.demands import Demands, DemandsOfTerms
from rlkl.updates.dro.settings import DroGroups, DroSettings, check_advantages
from rlkl.updates.run_facts import RunFacts
from rlkl.updates.terms.custom import TermEntry


class FilterSettings(Section):
    """The rollouts of each prompt that reach the rule; see `rlkl.updates.filters`."""

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


class RuleSettings(Demands, DemandsOfTerms, Section):
    """The keys that every rule has."""

    learns_from_pairs: ClassVar[bool] = False
    """Whether the rule can train on answers that the policy did not sample: pairs from a data set."""
    is_best_of_n: ClassVar[bool] = False
    """Whether the rule imitates the best of several samples; its reward over KL then has another form (Gao et al.)."""
    dro_groups: ClassVar[DroGroups | None] = None
    """The groups that ``dro`` weighs, by their advantages; None: the rule has no advantages, and ``dro`` is refused."""

    filter: FilterSettings | None = Field(default=None, description="Which rollouts of each prompt the rule sees; all.")
    terms: list[TermEntry] = Field(
        default_factory=list, description="Terms to add to the rule's loss: built-in ones (docs/terms.md) or your own."
    )
    dro: DroSettings | None = Field(
        default=None, description="Larger weights for prompts of low reward; null: equal weights."
    )

    @model_validator(mode="after")
    def _dro_has_advantages_to_weigh(self) -> Self:
        check_advantages(self.dro, self.dro_groups, rule=getattr(self, "rule", "custom"))
        return self

    @property
    def own_terms(self) -> frozenset[str]:
        """The names of the rule's own terms in its curves ``loss/<name>``, with these settings.

        A recipe that gives one of these names to an added term is refused. A custom rule that declares none is checked
        at its first loss.
        """
        return frozenset()

    @property
    def keeps_reference(self) -> bool:
        """Whether the learner keeps the frozen reference for this rule."""
        return True

    @property
    def needs_reference_model(self) -> bool:
        """Whether the learner keeps the frozen reference: for the rule, or for one of the terms."""
        return self.keeps_reference or self.has_term_to_reference

    @property
    def has_term_to_reference(self) -> bool:
        """Whether one of the terms compares the policy with the reference."""
        return any(term.frozen_model == "reference" for term in self.terms)

    @property
    def pull_to_reference(self) -> str | None:
        """The setting, as ``update.kl_coef = 0.1``, by which the rule itself holds the policy near the reference."""
        return self._above_zero("kl_coef")

    @property
    def weight_of_entropy(self) -> str | None:
        """The setting, as ``update.entropy_coef = 0.1``, by which the rule itself changes the policy's entropy."""
        return self._above_zero("entropy_coef")

    def _above_zero(self, key: str) -> str | None:
        value = getattr(self, key, 0)
        return f"update.{key} = {value:g}" if isinstance(value, int | float) and value > 0 else None

    def selection(self, run: RunFacts) -> str | None:
        """Return the setting that picks some rollouts of a prompt by their rewards; None if all are trained on.

        Tokens of picked rollouts are no sample of the policy.
        """
        samples = run.samples_per_prompt
        if self.filter is None or (self.filter.keep != "threshold" and most_kept(self.filter, samples) == samples):
            return None
        return f"update.filter.keep = {self.filter.keep}"

    def warnings(self, run: RunFacts) -> Iterator[str]:
        """Warn about settings that may not do what one expects in this run. A custom rule may warn, too.

        Each sentence names the keys and their values, the effect, and what to set instead. Terms warn for themselves.
        """
        return iter(())

    def resolved(self) -> RuleSettings:
        """Return these settings with every key filled in, for people to read."""
        return self


CORRECTION_BOUNDS = {"token_truncate": (0.0, 2.0), "token_mask": (0.5, 5.0), "sequence_mask": (0.99, 1.01)}
"""The usual smallest and largest ratio of each correction; sources: `rlkl.functional.correction`."""


class CorrectedSettings(RuleSettings):
    """The keys of a rule that can correct for its sampler; see docs/correction.md."""

    correction: Literal["auto", "none", "token_truncate", "token_mask", "sequence_mask"] = Field(
        default="auto",
        description="Weights for stale or rounded samples; auto: none in float32 under alternate, else token_truncate.",
    )
    correction_low: float | None = Field(
        default=None, ge=0, description="Smallest ratio that is kept; left out: the usual one of the correction."
    )
    correction_high: float | None = Field(
        default=None, gt=0, description="Largest ratio that is kept; left out: the usual one of the correction."
    )

    @model_validator(mode="after")
    def _bounds_are_used(self) -> CorrectedSettings:
        given = {"correction_low": self.correction_low, "correction_high": self.correction_high}
        named = [f"{key} = {x:g}" for key, x in given.items() if x is not None]
        if self.correction in ("auto", "none"):
            if named:
                raise ValueError(
                    f"{' and '.join(named)} with correction = {self.correction}: a bound belongs to a correction that "
                    "is named. Set update.correction to token_truncate (which auto takes in bfloat16), token_mask or "
                    "sequence_mask"
                )
            return self
        if self.correction == "token_truncate" and self.correction_low is not None:
            raise ValueError("correction = token_truncate has no lower bound; leave correction_low out")
        low, high = self.correction_bounds()
        if low >= high:
            raise ValueError(
                f"correction_low = {low:g} is not below correction_high = {high:g}, so every token would be cut; set "
                "both, or the other one"
            )
        return self

    def correction_bounds(self) -> tuple[float, float]:
        """Return the smallest and the largest ratio that is kept, for a correction that is named."""
        usual_low, usual_high = CORRECTION_BOUNDS[self.correction]
        low, high = self.correction_low, self.correction_high
        return (usual_low if low is None else low, usual_high if high is None else high)

    def for_sampler(self, *, is_exact: bool) -> Self:
        """Return the settings with ``auto`` decided; ``is_exact``: the sampler has the learner's numbers."""
        if self.correction != "auto":
            return self
        return self.model_copy(update={"correction": "none" if is_exact else "token_truncate"})


def most_kept(settings: FilterSettings | None, samples: int) -> int:
    """Return the most completions of a prompt that can pass the filter."""
    if settings is None or settings.keep == "threshold":
        return samples
    return min(int(settings.value), samples) if settings.keep == "top_k" else math.ceil(settings.value * samples)


def warnings_about_no_reference(run: RunFacts, settings: RuleSettings, kl_coef: float) -> Iterator[str]:
    """Warn if nothing measures how far the policy moves from the reference."""
    if kl_coef == 0 and not run.tracks_reference_kl and not settings.has_term_to_reference:
        yield (
            "update.kl_coef = 0 and learner.track_reference_kl = false: no reference model is kept, so nothing holds "
            "the policy near it and there is no KL curve. learner.track_reference_kl=true logs the KL without using it"
        )
