"""The metrics of on-policy distillation. No torch here."""

from __future__ import annotations

from rlkl.types import MetricDefinition
from rlkl.updates.metrics import CLIP_FRACTION_HIGH, CLIP_FRACTION_LOW, CORRECTION, LOSS_POLICY

METRICS: tuple[MetricDefinition, ...] = (
    MetricDefinition(
        key="loss/distill",
        unit="nats per token",
        formula=(
            "The exact KL between policy and teacher, or with update.jsd_beta their Jensen-Shannon divergence: mean "
            "over the step's response tokens."
        ),
        bad="Not falling: raise learner.lr, or the teacher is out of the policy's reach.",
    ),
    LOSS_POLICY,
    MetricDefinition(
        key="distill/kl",
        unit="nats per token",
        formula=(
            "The exact KL in update.direction; with update.top_k or update.kept_mass a lower bound of it; with "
            "update.placement = reward an estimate of KL(policy || teacher) from the sampled tokens: log(policy / "
            "teacher). Mean over the step's response tokens."
        ),
        bad="Not falling: the policy learns nothing from the teacher.",
    ),
    MetricDefinition(
        key="distill/jsd",
        unit="nats per token",
        formula=(
            "With update.jsd_beta: the generalised Jensen-Shannon divergence, mean over the step's response tokens. It "
            "is below the entropy of the weights beta and 1 - beta."
        ),
        bad="Not falling: the policy learns nothing from the teacher.",
    ),
    MetricDefinition(
        key="distill/outside",
        unit="fraction",
        formula=(
            "With update.kept_mass: probability that the policy gives to the tokens in the bucket, mean over the "
            "step's response tokens."
        ),
        bad="Well above 1 - update.kept_mass: the policy spreads over tokens that the loss does not tell apart.",
    ),
    MetricDefinition(
        key="distill/coverage",
        unit="fraction",
        formula=(
            "With update.kept_mass: probability that the teacher gives to the window, each token times its gate, mean "
            "over the step's response tokens. It is never below update.kept_mass."
        ),
        bad="With update.gate_tokens: back at its value without a gate; the gate is shut, so leave it out.",
    ),
    MetricDefinition(
        key="distill/window_tokens",
        unit="tokens",
        formula="With update.kept_mass: sum of the gates over the vocabulary, mean over the step's response tokens.",
        bad="Near 1: the loss compares one token with a bucket; raise update.kept_mass.",
    ),
    MetricDefinition(
        key="distill/gate",
        unit="share",
        formula=(
            "With update.gate_tokens: width of the window as the gate gives it, as a share of what update.kept_mass "
            "leaves out; mean over the step's response tokens. Below 0 the window is that of update.kept_mass, above 1 "
            "the whole vocabulary."
        ),
        bad="Below 0: the gate is shut, as its loss asks for; update.kept_mass alone does the same.",
    ),
    MetricDefinition(
        key="distill/cut_fraction",
        unit="fraction",
        formula="Share of response tokens whose log(teacher / policy) was cut at update.max_log_ratio.",
        bad="Above 0.05 after the first steps: the teacher gives the policy's tokens no probability.",
    ),
    MetricDefinition(
        key="rollout/corrected_fraction",
        unit="fraction",
        formula="With update.corrections: share of the step's completions in which the teacher chose a token.",
        bad="Not falling: the policy does not come nearer to the teacher. Near 0: corrections change nothing.",
    ),
    MetricDefinition(
        key="rollout/correction_place",
        unit="fraction",
        formula=(
            "With update.corrections: number of the token that the teacher chose, from 0, divided by the tokens of the "
            "completion after all corrections; mean over all such tokens of the step. Absent if there is none."
        ),
        bad="Always near 0: little of the policy's own samples is left.",
    ),
    MetricDefinition(
        key="rollout/correction_kl",
        unit="nats per token",
        formula=(
            "With update.corrections: the exact KL between policy and teacher in update.direction at the tokens that "
            "the teacher chose, before the step; their mean. Absent if there is none."
        ),
        bad="Not falling: the policy repeats its errors.",
    ),
    MetricDefinition(
        key="rollout/teacher_token_fraction",
        unit="fraction",
        formula="With update.corrections: share of the step's completion tokens that the teacher chose.",
        bad="Large for short completions: they are more the teacher's than the policy's.",
    ),
    MetricDefinition(
        key="rollout/regenerated_token_fraction",
        unit="fraction",
        formula="With update.corrections: share of the step's completion tokens that were sampled after a correction.",
        bad="Near 1: samples are corrected at their start, and nearly all sampling is done twice.",
    ),
    CLIP_FRACTION_LOW,
    CLIP_FRACTION_HIGH,
    *CORRECTION,
)
