"""The update rules. Importing this package loads no torch; `build_update` does."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from rlkl.updates.custom import OutsideSettings, rule_of
from rlkl.updates.terms import build_terms
from rlkl.updates.terms.checks import check_names

if TYPE_CHECKING:
    from rlkl.updates.base import PolicyUpdate
    from rlkl.updates.settings import UpdateSettings

RULES = {
    "distill": "rlkl.updates.distill.rule:Distill",
    "grpo": "rlkl.updates.grpo.rule:Grpo",
    "listwise": "rlkl.updates.listwise.rule:Listwise",
    "papo": "rlkl.updates.papo.rule:Papo",
    "ppo": "rlkl.updates.ppo.rule:Ppo",
    "sparsepo": "rlkl.updates.sparsepo.rule:SparsePo",
    "superhf": "rlkl.updates.superhf.rule:SuperHf",
}
"""Rule name in the recipe -> where its class lives. Rules from outside: `rlkl.updates.custom`."""


def build_update(settings: UpdateSettings | OutsideSettings, *, seed: int = 0) -> PolicyUpdate:
    """Build the rule that ``update.rule`` names, with its settings, ``update.dro``, and the terms of ``update.terms``.

    ``seed`` is the recipe's, for the rule's own draws. Raises `RecipeError` if the name of a term is taken.
    """
    check_names(settings)
    rule = _build_rule(settings)
    rule.seed = seed
    if settings.dro is not None:
        from rlkl.updates.dro.weighted import WithDro

        rule = WithDro(rule, settings.dro)
    if not settings.terms:
        return rule
    from rlkl.updates.terms.composed import WithTerms

    return WithTerms(rule, build_terms(settings.terms))


def _build_rule(settings: UpdateSettings | OutsideSettings) -> PolicyUpdate:
    if isinstance(settings, OutsideSettings):
        return rule_of(settings)(settings)
    module, _, name = RULES[settings.rule].partition(":")
    return getattr(import_module(module), name)(settings)
