"""The metrics of on-policy distillation. No torch here."""

from __future__ import annotations

from rlkl.types import MetricDefinition
from rlkl.updates.metrics import CLIP_FRACTION_HIGH, CLIP_FRACTION_LOW, CORRECTION, LOSS_POLICY

METRICS: tuple[MetricDefinition, ...] = (
    MetricDefinition(
        key="loss/distill",
        unit="nats per token",
        formula="The exact KL between policy and teacher: mean over the step's response tokens.",
        bad="Not falling: raise learner.lr, or the teacher is out of the policy's reach.",
    ),
    LOSS_POLICY,
    MetricDefinition(
        key="distill/kl",
        unit="nats per token",
        formula=(
            "The exact KL in update.direction, or with update.placement = reward an estimate of KL(policy || teacher) "
            "from the sampled tokens: log(policy / teacher), mean over the step's response tokens."
        ),
        bad="Not falling: the policy learns nothing from the teacher.",
    ),
    MetricDefinition(
        key="distill/cut_fraction",
        unit="fraction",
        formula="Share of response tokens whose log(teacher / policy) was cut at update.max_log_ratio.",
        bad="Above 0.05 after the first steps: the teacher gives the policy's tokens no probability.",
    ),
    CLIP_FRACTION_LOW,
    CLIP_FRACTION_HIGH,
    *CORRECTION,
)
