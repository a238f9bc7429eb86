"""The settings of all built-in terms. No torch here."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from rlkl.updates.terms.replay.settings import ReplaySettings
from rlkl.updates.terms.settings import (
    ConsistencySettings,
    EntropySettings,
    KlSettings,
    MarginalKlSettings,
    MaskedKlSettings,
)
from rlkl.updates.terms.span.settings import SpanSettings

BuiltInTerm = Annotated[
    KlSettings
    | MaskedKlSettings
    | EntropySettings
    | MarginalKlSettings
    | ConsistencySettings
    | ReplaySettings
    | SpanSettings,
    Field(discriminator="term"),
]
"""The settings of a built-in term, by its name."""
