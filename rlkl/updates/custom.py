"""Update rules from outside the package: ``update.rule: my_rule.py:MyRule`` or ``package.module:MyRule``."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from rlkl.errors import RecipeError
from rlkl.system.importing import Importer, file_of, is_file
from rlkl.updates.settings import RuleSettings

if TYPE_CHECKING:
    from rlkl.updates.base import PolicyUpdate

_IMPORTER = Importer(
    key="update.rule",
    noun="rule",
    forms="the name of a built-in rule, path/to/file.py:Class, or package.module:Class",
    error=RecipeError,
)


class OutsideSettings(RuleSettings):
    """The settings of a rule from outside: the keys that its ``Settings`` class has, and where the rule comes from."""

    rule: str = Field(description="The update rule: path/to/file.py:Class or package.module:Class.")

    def __reduce__(self) -> tuple[Any, ...]:
        """The way to another process, perhaps on a machine without the file: its text travels along."""
        file = file_of(self.rule) if is_file(self.rule) else None
        return (_rebuilt, (self.model_dump(), file, file.read_bytes() if file else b""))


def is_outside(rule: Any) -> bool:
    """Whether ``update.rule`` refers to a class rather than to a built-in rule."""
    return isinstance(rule, str) and ":" in rule


def outside_rule(reference: str) -> type[PolicyUpdate]:
    """The class that ``reference`` names. Raises `RecipeError` where it is no rule."""
    return _checked(_IMPORTER.callable_at(reference), reference)


def settings_class(reference: str) -> type[OutsideSettings]:
    """The rule's own ``Settings`` with ``rule`` beside its keys. Raises `RecipeError` where there is no such rule."""
    return _with_rule(outside_rule(reference))


def _checked(found: Any, reference: str) -> type[PolicyUpdate]:
    from rlkl.updates.base import PolicyUpdate

    if not (isinstance(found, type) and issubclass(found, PolicyUpdate)):
        raise RecipeError(f"update.rule = '{reference}': {found!r} is no subclass of rlkl.updates.base.PolicyUpdate")
    if missing := sorted(found.__abstractmethods__):
        raise RecipeError(f"update.rule = '{reference}': {found.__name__} does not define {', '.join(missing)}")
    if not (isinstance(found.Settings, type) and issubclass(found.Settings, RuleSettings)):
        raise RecipeError(
            f"update.rule = '{reference}': {found.__name__}.Settings is {found.Settings!r}; expected a subclass of "
            "rlkl.updates.settings.RuleSettings"
        )
    return found


@cache
def _with_rule(rule: type[PolicyUpdate]) -> type[OutsideSettings]:
    return type("Settings", (OutsideSettings, rule.Settings), {"__module__": __name__})


def _rebuilt(values: Mapping[str, Any], file: Path | None, text: bytes) -> OutsideSettings:
    """The settings in the process that they were sent to, with the rule as it was where they came from."""
    reference = values["rule"]
    if file is None:
        return settings_class(reference).model_validate(values)
    module = _IMPORTER.source(file, text)
    rule = _checked(vars(module)[reference.rpartition(":")[2]], reference)
    settings = _with_rule(rule).model_validate(values)
    _ARRIVED[reference] = rule
    return settings


_ARRIVED: dict[str, type[PolicyUpdate]] = {}
"""Rules that came with their settings from another process."""


def rule_of(settings: OutsideSettings) -> type[PolicyUpdate]:
    """The class whose settings these are."""
    return _ARRIVED.get(settings.rule) or outside_rule(settings.rule)
