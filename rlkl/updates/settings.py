"""The ``update`` section of the recipe: the settings of any rule. No torch here."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from rlkl.updates.base_settings import FilterSettings, RuleSettings
from rlkl.updates.distill.settings import DistillSettings
from rlkl.updates.grpo.settings import (
    GRPO_VARIANTS,
    KL_ESTIMATORS,
    Advantage,
    Aggregation,
    GrpoChoices,
    GrpoSettings,
    GrpoVariant,
    KlEstimator,
    KlPlacement,
    Ratio,
    Surrogate,
)
from rlkl.updates.listwise.settings import ListwiseSettings, OverTokens, TauUnit
from rlkl.updates.papo.settings import PAPO_GRPO, PapoSettings
from rlkl.updates.ppo.settings import PpoSettings
from rlkl.updates.run_facts import RunFacts
from rlkl.updates.sparsepo.settings import MaskedTerms, SparsePoSettings, TokenMask
from rlkl.updates.superhf.settings import SuperHfSettings

__all__ = [
    "GRPO_VARIANTS",
    "KL_ESTIMATORS",
    "PAPO_GRPO",
    "Advantage",
    "Aggregation",
    "DistillSettings",
    "FilterSettings",
    "GrpoChoices",
    "GrpoSettings",
    "GrpoVariant",
    "KlEstimator",
    "KlPlacement",
    "ListwiseSettings",
    "MaskedTerms",
    "OverTokens",
    "PapoSettings",
    "PpoSettings",
    "Ratio",
    "RuleSettings",
    "RunFacts",
    "SparsePoSettings",
    "SuperHfSettings",
    "Surrogate",
    "TauUnit",
    "TokenMask",
    "UpdateSettings",
]

UpdateSettings = Annotated[
    GrpoSettings | PapoSettings | PpoSettings | SuperHfSettings | SparsePoSettings | ListwiseSettings | DistillSettings,
    Field(discriminator="rule"),
]
"""The settings of any built-in rule, by ``rule``."""
