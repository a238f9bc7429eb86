"""Demands of a rule and of its terms on a run: models, columns, weights. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from rlkl.updates.terms.followers import AVERAGE_DECAY, LAG, first_value


class HasTerms(Protocol):
    """Settings with terms."""

    @property
    def terms(self) -> Sequence[Any]: ...


class Demands:
    """Demands of the rule itself: none, by default."""

    @property
    def frozen_models(self) -> frozenset[str]:
        """The names of ``models`` that the rule itself compares the policy with."""
        return frozenset()

    @property
    def answer_columns(self) -> dict[str, str]:
        """The columns of the data with answers that the rule trains on, by the recipe's key; none for most rules."""
        return {}

    @property
    def has_whole_logits(self) -> bool:
        """Whether the rule compares two models in a way that keeps logits of the whole vocabulary for a chunk."""
        return False

    @property
    def learns_without_rewards(self) -> bool:
        """Whether the rule trains on samples that no reward has scored; a recipe then needs none."""
        return False

    @property
    def correction_rounds(self) -> int:
        """Rounds in which a teacher corrects the samples before they are scored; 0 for most rules."""
        return 0

    def sequences_together(self, samples: int) -> int:
        """Return the most sequences of a prompt that must share a micro-batch, for so many samples a prompt."""
        return 1


class DemandsOfTerms:
    """Demands of the terms."""

    @property
    def wording_columns(self: HasTerms) -> dict[str, str]:
        """The columns of the data with other wordings of the prompt that terms read, by the recipe's key."""
        columns = {f"update.terms[{number}].column": term.wording_column for number, term in enumerate(self.terms)}
        return {key: column for key, column in columns.items() if column is not None}

    @property
    def keeps_average(self: HasTerms) -> bool:
        """Whether the learner keeps a moving average of the policy: for one of the terms."""
        return any(term.frozen_model == "average" for term in self.terms)

    @property
    def average_decay(self: HasTerms) -> float:
        """The part of itself that the average keeps each optimizer step: that of the terms, which have one value."""
        return first_value(self.terms, "average", "average_decay", AVERAGE_DECAY)

    @property
    def keeps_lagged(self: HasTerms) -> bool:
        """Whether the learner keeps earlier weights of the policy: for one of the terms."""
        return any(term.frozen_model == "lagged" for term in self.terms)

    @property
    def lag(self: HasTerms) -> int:
        """The least age of those weights in optimizer steps: that of the terms, which have one value."""
        return first_value(self.terms, "lagged", "lag", LAG)
