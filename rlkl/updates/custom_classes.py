"""Custom classes that a recipe names: rules (`rlkl.updates.custom`) and terms (`rlkl.updates.terms.custom`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rlkl.errors import RecipeError
from rlkl.schema import Section
from rlkl.system.importing import Importer, file_of, is_file


class WrongSettings(ValueError):
    """Settings that do not fit a custom class; `rlkl.recipe.explain` turns each of its problems into a sentence."""

    def __init__(self, error: ValidationError, section: type[Section]) -> None:
        self.error, self.section = error, section
        super().__init__(str(error))


@dataclass(frozen=True, kw_only=True, eq=False)
class CustomKind:
    """A kind of class that a recipe can name by ``path/to/file.py:Class`` or ``package.module:Class``."""

    name: str
    """``rule`` or ``term``: the key of its settings that holds the reference."""
    importer: Importer
    base: Callable[[], type]
    """Loads the class that a custom one must extend."""
    own_settings: type[Section]
    """The class that its ``Settings`` must extend."""
    own_settings_name: str
    """The module and name by which users import that class."""
    with_reference: Callable[[], type[Section]]
    """The settings class with the reference among its keys."""
    arrived: dict[str, type] = field(default_factory=dict)
    """Classes that came with their settings from another process."""
    made: dict[type, type[Section]] = field(default_factory=dict)
    """Settings classes that were made, by the custom class."""

    def class_at(self, reference: str) -> Any:
        """Import the class that ``reference`` names; raises `RecipeError` if it is not one of this kind."""
        return self._checked(self.importer.callable_at(reference), reference)

    def settings_at(self, reference: str) -> type[Section]:
        """Return the class's own ``Settings`` with the reference as a further key."""
        return self._settings_of(self.class_at(reference))

    def class_of(self, settings: Any) -> Any:
        """Return the class that the settings belong to."""
        reference = getattr(settings, self.name)
        return self.arrived.get(reference) or self.class_at(reference)

    def packed(self, settings: Section) -> tuple[Any, ...]:
        """Return what pickle stores: the file's text travels along, perhaps to a machine without the file."""
        reference = getattr(settings, self.name)
        file = file_of(reference) if is_file(reference) else None
        values = {name: getattr(settings, name) for name in type(settings).model_fields}  # terms pack themselves
        return (_rebuild, (self.name, values, file, file.read_bytes() if file else b""))

    def rebuilt(self, values: Mapping[str, Any], file: Path | None, text: bytes) -> Section:
        """Rebuild settings in the process that they were sent to, with the class as it was at the sender."""
        reference = values[self.name]
        if file is None:
            return self.settings_at(reference).model_validate(values)
        module = self.importer.source(file, text)
        found = self._checked(vars(module)[reference.rpartition(":")[2]], reference)
        settings = self._settings_of(found).model_validate(values)
        self.arrived[reference] = found
        return settings

    def _checked(self, found: Any, reference: str) -> Any:
        base = self.base()
        named = f"{self.importer.key} = '{reference}'"
        if not (isinstance(found, type) and issubclass(found, base)):
            kind = "class" if isinstance(found, type) else type(found).__name__
            name = getattr(found, "__name__", repr(found))
            raise RecipeError(
                f"{named}: the {kind} '{name}' is no subclass of {base.__module__}.{base.__qualname__}; derive one "
                "from it (docs/your_own_rule.md)"
            )
        if missing := sorted(getattr(found, "__abstractmethods__", ())):
            raise RecipeError(f"{named}: {found.__name__} does not define {', '.join(missing)}")
        own: Any = vars(found).get("Settings", getattr(found, "Settings", None))
        if not (isinstance(own, type) and issubclass(own, self.own_settings)):
            raise RecipeError(
                f"{named}: {found.__name__}.Settings is {own!r}; expected a subclass of {self.own_settings_name}"
            )
        return found

    def _settings_of(self, found: Any) -> type[Section]:
        if found not in self.made:
            self.made[found] = type("Settings", (self.with_reference(), found.Settings), {"__module__": __name__})
        return self.made[found]


KINDS: dict[str, CustomKind] = {}
"""Kinds by name, for settings that arrive from another process."""


def is_custom(reference: Any) -> bool:
    """Return whether a recipe's value refers to a class of the user."""
    return isinstance(reference, str) and ":" in reference


def register(kind: CustomKind) -> CustomKind:
    """Make a kind known to `pickle`."""
    KINDS[kind.name] = kind
    return kind


def _rebuild(kind: str, values: Mapping[str, Any], file: Path | None, text: bytes) -> Section:
    return KINDS[kind].rebuilt(values, file, text)
