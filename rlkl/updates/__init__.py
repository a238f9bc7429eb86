"""The update rules. Importing this package loads no torch; `build_update` does."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from rlkl.updates.outside import OutsideSettings, rule_of

if TYPE_CHECKING:
    from rlkl.updates.base import PolicyUpdate
    from rlkl.updates.settings import UpdateSettings

RULES = {
    "grpo": "rlkl.updates.grpo:Grpo",
    "papo": "rlkl.updates.papo:Papo",
    "ppo": "rlkl.updates.ppo:Ppo",
    "sparsepo": "rlkl.updates.sparsepo:SparsePo",
    "superhf": "rlkl.updates.superhf:SuperHf",
}
"""Rule name in the recipe -> where its class lives. Rules from outside: `rlkl.updates.outside`."""


def build_update(settings: UpdateSettings | OutsideSettings) -> PolicyUpdate:
    """The rule that ``update.rule`` names, with its settings."""
    if isinstance(settings, OutsideSettings):
        return rule_of(settings)(settings)
    module, _, name = RULES[settings.rule].partition(":")
    return getattr(import_module(module), name)(settings)
