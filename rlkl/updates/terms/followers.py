"""The keys of terms that set how a frozen model follows the policy. No torch here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlkl.updates.terms.settings import AnchoredSettings, TermSettings

AVERAGE_DECAY = 0.99
"""Part of itself that the frozen model average keeps each optimizer step, if a term does not say."""
LAG = 10
"""Least age of the frozen model lagged in optimizer steps, if a term does not say."""

_KEYS = {"average": "average_decay", "lagged": "lag"}
"""Frozen model that follows the policy -> the key of the terms that compare with it."""


def first_value(terms: Sequence[TermSettings], model: str, key: str, default: Any) -> Any:
    """Return the value of ``key`` of the first term that compares with ``model`` and has this key."""
    found = (getattr(term, key, None) for term in terms if term.frozen_model == model)
    return next((value for value in found if value is not None), default)


def check_followers(terms: Sequence[TermSettings]) -> None:
    """Raise ValueError if two terms want different things of one frozen model."""
    for number, term in enumerate(terms):
        model, key = term.frozen_model, _KEYS.get(term.frozen_model or "")
        value = None if key is None else getattr(term, key, None)
        if model is None or key is None or value is None:
            continue
        if value != (first := first_value(terms, model, key, value)):
            raise ValueError(
                f"update.terms[{number}].{key} = {value:g}, and another term has {first:g}: there is one {model} "
                "model. Give both the same value"
            )


def warnings_about_followers(term: AnchoredSettings) -> Iterator[str]:
    """Warn about a key for another frozen model than the term's, and about an average that does not hold back."""
    decay, lag = term.average_decay, term.lag
    if term.frozen_model != "average" and decay != AVERAGE_DECAY:
        yield f"average_decay = {decay:g} has no effect with to = {term.frozen_model}. Leave it out"
    elif term.frozen_model == "average" and decay == 0:
        yield (
            "average_decay = 0: the average is the policy after its last optimizer step, so an exact KL to it is 0 "
            "and holds nothing back. Take a value near 1"
        )
    if term.frozen_model != "lagged" and lag != LAG:
        yield f"lag = {lag} has no effect with to = {term.frozen_model}. Leave it out"
