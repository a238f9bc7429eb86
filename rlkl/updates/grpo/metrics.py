"""The metrics of GRPO. No torch here."""

from __future__ import annotations

from rlkl.types import MetricDefinition
from rlkl.updates.metrics import CLIP_FRACTION_HIGH, CLIP_FRACTION_LOW, CORRECTION, LOSS_KL, LOSS_POLICY

METRICS: tuple[MetricDefinition, ...] = (
    LOSS_POLICY,
    LOSS_KL,
    CLIP_FRACTION_LOW,
    CLIP_FRACTION_HIGH,
    *CORRECTION,
)
