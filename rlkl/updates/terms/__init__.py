"""Loss terms that any rule can be given: ``update.terms`` in the recipe. Importing this package loads no torch."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING

from rlkl.errors import RecipeError
from rlkl.updates.terms.custom import CustomTermSettings, term_of

if TYPE_CHECKING:
    from rlkl.updates.terms.base import Term
    from rlkl.updates.terms.settings import TermSettings

TERMS = {
    "kl": "rlkl.updates.terms.kl:Kl",
    "masked_kl": "rlkl.updates.terms.masked_kl:MaskedKl",
    "entropy": "rlkl.updates.terms.entropy:Entropy",
}
"""Term name in the recipe -> module and class. Custom terms: `rlkl.updates.terms.custom`."""


def build_terms(settings: Sequence[TermSettings]) -> dict[str, Term]:
    """Build the terms of a recipe, by the names of their curves ``loss/<name>``.

    A term without a name of its own takes its default name, numbered from the second one on: ``kl_reference_2``.
    """
    terms: dict[str, Term] = {}
    for one in settings:
        term = _build(one)
        name = one.name or term.default_name
        if name == "total":
            raise RecipeError("update.terms[].name = 'total': loss/total is the curve of the whole loss; take another")
        number = 1
        while (numbered := name if number == 1 else f"{name}_{number}") in terms:
            number += 1
        terms[numbered] = term
    return terms


def _build(settings: TermSettings) -> Term:
    if isinstance(settings, CustomTermSettings):
        return term_of(settings)(settings)
    module, _, name = TERMS[settings.term].partition(":")
    return getattr(import_module(module), name)(settings)
