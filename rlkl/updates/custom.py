"""Custom update rules: ``update.rule: my_rule.py:MyRule`` or ``package.module:MyRule``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from rlkl.errors import RecipeError
from rlkl.system.importing import Importer
from rlkl.updates.custom_classes import CustomKind, is_custom, register
from rlkl.updates.settings import RuleSettings

if TYPE_CHECKING:
    from rlkl.updates.base import PolicyUpdate


class OutsideSettings(RuleSettings):
    """The settings of a custom rule: the keys of its ``Settings`` class, and the reference to the rule."""

    rule: str = Field(description="The update rule: path/to/file.py:Class or package.module:Class.")

    def __reduce__(self) -> tuple[Any, ...]:
        return _RULES.packed(self)


def _base() -> type:
    from rlkl.updates.base import PolicyUpdate

    return PolicyUpdate


_RULES = register(
    CustomKind(
        name="rule",
        importer=Importer(
            key="update.rule",
            noun="rule",
            forms="the name of a built-in rule, path/to/file.py:Class, or package.module:Class",
            error=RecipeError,
        ),
        base=_base,
        own_settings=RuleSettings,
        own_settings_name="rlkl.updates.settings.RuleSettings",
        with_reference=lambda: OutsideSettings,
    )
)


def is_outside(rule: Any) -> bool:
    """Return whether ``update.rule`` names a custom rule."""
    return is_custom(rule)


def settings_class(reference: str) -> type[OutsideSettings]:
    """Return the rule's ``Settings`` with ``rule`` as a further key; raises `RecipeError` if there is no such rule."""
    found: Any = _RULES.settings_at(reference)
    return found


def rule_of(settings: OutsideSettings) -> type[PolicyUpdate]:
    """Return the class that the settings belong to."""
    return _RULES.class_of(settings)
