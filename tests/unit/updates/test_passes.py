"""The passes that `rlkl plan` counts for each rule."""

from __future__ import annotations

import pytest

from rlkl.updates.passes import Passes, passes_of
from rlkl.updates.settings import (
    GrpoSettings,
    ListwiseSettings,
    PapoSettings,
    PpoSettings,
    RuleSettings,
    SparsePoSettings,
    SuperHfSettings,
)


@pytest.mark.parametrize(
    ("settings", "one", "several"),
    [
        (GrpoSettings(), Passes(forward=0), Passes(forward=1)),
        (GrpoSettings(kl_coef=0.1, kl_placement="reward"), Passes(forward=1), Passes(forward=1)),
        (
            GrpoSettings.model_validate({"terms": [{"term": "consistency"}]}),
            Passes(forward=0, training=1),
            Passes(forward=1, training=1),
        ),
        (SuperHfSettings(), Passes(forward=0), Passes(forward=1)),
        (SparsePoSettings(), Passes(forward=0), Passes(forward=1)),
        (ListwiseSettings(), Passes(forward=0), Passes(forward=1)),
        (PpoSettings(kl_coef=0), Passes(forward=1), Passes(forward=1)),
        (PpoSettings(kl_coef=0, critic="none"), Passes(forward=0), Passes(forward=1)),
        (PpoSettings(), Passes(forward=1), Passes(forward=1)),
        (PpoSettings(critic="model"), Passes(forward=2, critics=1), Passes(forward=2, critics=1)),
        (PapoSettings(), Passes(forward=1), Passes(forward=2)),
        (PapoSettings(recompute=True), Passes(forward=1, training=1), Passes(forward=2, training=1)),
    ],
)
def test_passes_of_each_rule(settings: RuleSettings, one: Passes, several: Passes):
    assert passes_of(settings, optimizer_steps=1) == one
    assert passes_of(settings, optimizer_steps=2) == several
