"""Loss terms that any rule can be given: ``update.terms`` in the recipe. Importing this package loads no torch."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING

from rlkl.updates.terms.checks import curve_names
from rlkl.updates.terms.custom import CustomTermSettings, term_of

if TYPE_CHECKING:
    from rlkl.updates.terms.base import Term
    from rlkl.updates.terms.settings import TermSettings

TERMS = {
    "kl": "rlkl.updates.terms.kl:Kl",
    "masked_kl": "rlkl.updates.terms.masked_kl.term:MaskedKl",
    "entropy": "rlkl.updates.terms.entropy:Entropy",
    "consistency": "rlkl.updates.terms.consistency.term:Consistency",
    "marginal_kl": "rlkl.updates.terms.marginal_kl.term:MarginalKl",
    "rewording": "rlkl.updates.terms.rewording.term:Rewording",
    "span": "rlkl.updates.terms.span.term:Span",
    "replay": "rlkl.updates.terms.replay.term:Replay",
}
"""Term name in the recipe -> module and class. Custom terms: `rlkl.updates.terms.custom`."""


def build_terms(settings: Sequence[TermSettings]) -> dict[str, Term]:
    """Build the terms of a recipe, by the names of their curves ``loss/<name>``."""
    return {name: _build(one) for name, one in zip(curve_names(settings), settings, strict=True)}


def _build(settings: TermSettings) -> Term:
    if isinstance(settings, CustomTermSettings):
        return term_of(settings)(settings)
    module, _, name = TERMS[settings.term].partition(":")
    return getattr(import_module(module), name)(settings)
