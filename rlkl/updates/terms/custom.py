"""Custom loss terms: ``term: my_term.py:MyTerm`` or ``term: package.module:MyTerm`` in ``update.terms``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, SerializeAsAny, ValidationError, WrapValidator

from rlkl.errors import RecipeError
from rlkl.system.importing import Importer
from rlkl.updates.custom_classes import CustomKind, WrongSettings, is_custom, register
from rlkl.updates.terms.built_in import BuiltInTerm
from rlkl.updates.terms.settings import TermSettings

if TYPE_CHECKING:
    from rlkl.updates.terms.base import Term


class CustomTermSettings(TermSettings):
    """The settings of a custom term: the keys of its ``Settings`` class, and the reference to the term."""

    term: str = Field(description="The term: path/to/file.py:Class or package.module:Class.")

    def __reduce__(self) -> tuple[Any, ...]:
        return _TERMS.packed(self)


def _base() -> type:
    from rlkl.updates.terms.base import Term

    return Term


_TERMS = register(
    CustomKind(
        name="term",
        importer=Importer(
            key="update.terms[].term",
            noun="term",
            forms=(
                "kl, masked_kl, entropy, marginal_kl, consistency, rewording, replay, span, path/to/file.py:Class, or "
                "package.module:Class"
            ),
            error=RecipeError,
        ),
        base=_base,
        own_settings=TermSettings,
        own_settings_name="rlkl.updates.terms.settings.TermSettings",
        with_reference=lambda: CustomTermSettings,
    )
)


def term_of(settings: CustomTermSettings) -> type[Term]:
    """Return the class that the settings belong to."""
    return _TERMS.class_of(settings)


def _check(value: Any, built_in: Callable[[Any], TermSettings]) -> TermSettings:
    """Check the settings of a custom term by its own class, and all others as those of a built-in term."""
    if isinstance(value, CustomTermSettings):
        return value
    if isinstance(value, dict) and is_custom(value.get("term")):
        settings: Any = _TERMS.settings_at(value["term"])
        try:
            return settings.model_validate(value)
        except ValidationError as error:
            raise WrongSettings(error, settings) from None
    return built_in(value)


TermEntry = SerializeAsAny[Annotated[BuiltInTerm, WrapValidator(_check)]]
"""An entry of ``update.terms``."""
