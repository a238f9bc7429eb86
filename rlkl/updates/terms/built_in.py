"""The settings of all built-in terms. No torch here."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from rlkl.updates.terms.consistency.settings import ConsistencySettings
from rlkl.updates.terms.marginal_kl.settings import MarginalKlSettings
from rlkl.updates.terms.masked_kl.settings import MaskedKlSettings
from rlkl.updates.terms.replay.settings import ReplaySettings
from rlkl.updates.terms.rewording.settings import RewordingSettings
from rlkl.updates.terms.settings import EntropySettings, KlSettings
from rlkl.updates.terms.span.settings import SpanSettings

BuiltInTerm = Annotated[
    KlSettings
    | MaskedKlSettings
    | EntropySettings
    | MarginalKlSettings
    | ConsistencySettings
    | RewordingSettings
    | ReplaySettings
    | SpanSettings,
    Field(discriminator="term"),
]
"""The settings of a built-in term, by its name."""
