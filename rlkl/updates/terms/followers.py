"""The keys of terms that set how a frozen model follows the policy. No torch here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rlkl.updates.terms.settings import TermSettings

AVERAGE_DECAY = 0.99
"""Part of itself that the frozen model average keeps each optimizer step, if a term does not say."""


def warnings_about_followers(term: TermSettings) -> Iterator[str]:
    """Warn about a key for another frozen model than the term's, and about an average that does not hold back."""
    decay = getattr(term, "average_decay", AVERAGE_DECAY)
    if term.frozen_model != "average" and decay != AVERAGE_DECAY:
        yield f"average_decay = {decay:g} has no effect with to = {term.frozen_model}. Leave it out"
    elif term.frozen_model == "average" and decay == 0:
        yield (
            "average_decay = 0: the average is the policy after its last optimizer step, so an exact KL to it is 0 "
            "and holds nothing back. Take a value near 1"
        )
