"""The update rules. Importing this package loads no torch; `build_update` does."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from rlkl.updates.custom import OutsideSettings, rule_of

if TYPE_CHECKING:
    from rlkl.updates.base import PolicyUpdate
    from rlkl.updates.settings import UpdateSettings

RULES = {
    "grpo": "rlkl.updates.grpo.rule:Grpo",
    "papo": "rlkl.updates.papo.rule:Papo",
    "ppo": "rlkl.updates.ppo.rule:Ppo",
    "sparsepo": "rlkl.updates.sparsepo.rule:SparsePo",
    "superhf": "rlkl.updates.superhf.rule:SuperHf",
}
"""Rule name in the recipe -> where its class lives. Rules from outside: `rlkl.updates.custom`."""


def build_update(settings: UpdateSettings | OutsideSettings) -> PolicyUpdate:
    """The rule that ``update.rule`` names, with its settings."""
    if isinstance(settings, OutsideSettings):
        return rule_of(settings)(settings)
    module, _, name = RULES[settings.rule].partition(":")
    return getattr(import_module(module), name)(settings)
