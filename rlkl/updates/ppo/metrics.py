"""The metrics of PPO. No torch here."""

from __future__ import annotations

from rlkl.types import MetricDefinition
from rlkl.updates.metrics import CLIP_FRACTION_HIGH, CLIP_FRACTION_LOW, CORRECTION, LOSS_POLICY

METRICS: tuple[MetricDefinition, ...] = (
    LOSS_POLICY,
    MetricDefinition(
        key="loss/value",
        unit="loss",
        formula="update.value_coef times the mean value loss over response tokens.",
        bad="Not falling over the first steps: raise update.value_lr_scale.",
    ),
    MetricDefinition(
        key="update/value_explained_variance",
        unit="fraction",
        formula=(
            "1 - Var(return - value) / Var(return) over the step's response tokens, values at the start of the "
            "step; 0 where returns do not vary."
        ),
        bad="At or below 0 after the first steps: the critic is no better than a constant; raise its learning.",
    ),
    MetricDefinition(
        key="update/value_clip_fraction",
        unit="fraction",
        formula=(
            "Share of response tokens whose value moved by more than value_clip since the start of the step, "
            "towards its return or past it, so that the clip takes its gradient."
        ),
        bad="Above 0.2: the critic is held back; raise update.value_clip or lower learner.lr.",
    ),
    MetricDefinition(
        key="update/kl_coef",
        unit="reward per nat",
        formula="The weight of the per-token KL in this step's rewards, as steered so far.",
        bad="Rising or falling without end: update.kl_target cannot be held; see kl/policy_to_reference.",
    ),
    MetricDefinition(
        key="update/trained_sequences",
        unit="sequences",
        formula="Trained sequences with at least one response token.",
        bad="Far below prompts_per_step * samples_per_prompt: completions are empty or filtered out.",
    ),
    CLIP_FRACTION_LOW,
    CLIP_FRACTION_HIGH,
    *CORRECTION,
)
