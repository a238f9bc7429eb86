"""The metrics of SuperHF. No torch here."""

from __future__ import annotations

from rlkl.types import MetricDefinition
from rlkl.updates.metrics import EXACT_KL, LOSS_KL, SELECTED_FRACTION

METRICS: tuple[MetricDefinition, ...] = (
    MetricDefinition(
        key="loss/cross_entropy",
        unit="nats per token",
        formula="Cross-entropy of the kept completions.",
        bad="Near 0 while prompts differ: one answer for all.",
    ),
    LOSS_KL,
    EXACT_KL,
    SELECTED_FRACTION,
)
