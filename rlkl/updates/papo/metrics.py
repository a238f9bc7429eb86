"""The metrics of PAPO. No torch here."""

from __future__ import annotations

from rlkl.types import MetricDefinition
from rlkl.updates.grpo.metrics import METRICS as GRPO_METRICS

METRICS: tuple[MetricDefinition, ...] = (
    *GRPO_METRICS,
    MetricDefinition(
        key="loss/perception",
        unit="loss",
        formula="Minus update.perception_coef, annealed, times the mean k3 of clean against corrupted.",
        bad="Falling without end.",
    ),
    MetricDefinition(
        key="loss/entropy",
        unit="loss",
        formula="update.entropy_coef, annealed, times the mean negative log-probability given the image.",
        bad="Far above the other parts of the loss.",
    ),
    MetricDefinition(
        key="loss/corrupted_entropy",
        unit="loss",
        formula="update.corrupted_entropy_coef, annealed, times the same mean given the corrupted image.",
        bad="Far above the other parts of the loss.",
    ),
    MetricDefinition(
        key="perception/kl",
        unit="nats per token",
        formula=(
            "Mean over response tokens of image sequences of k3 (at most 10) of the policy given the image "
            "against given the corrupted image (KL(clean || corrupted)); the loss takes it off."
        ),
        bad="Above 0.3, or jumping: the loss is being hacked. Near 0: answers do not depend on the image.",
    ),
    MetricDefinition(
        key="perception/kl_variance",
        unit="squared nats",
        formula="Mean over image sequences of the variance (population) of perception/kl within a response.",
        bad="Above three times its median so far: a few odd tokens make up the KL.",
    ),
    MetricDefinition(
        key="perception/entropy_clean",
        unit="nats per token",
        formula="Mean negative log-probability of sampled tokens given the image.",
        bad="Rising together with perception/entropy_corrupted: answers drift into unlikely tokens.",
    ),
    MetricDefinition(
        key="perception/entropy_corrupted",
        unit="nats per token",
        formula="Mean negative log-probability of sampled tokens given the corrupted image.",
        bad="Rising together with perception/entropy_clean: answers drift into unlikely tokens.",
    ),
    MetricDefinition(
        key="time/corrupted_s",
        unit="seconds",
        formula=(
            "Corrupting the pictures and scoring the responses given them, once a step: a part of time/learner_s, "
            "without the further passes of update.recompute."
        ),
        bad="Far above a fifth of time/step_s: lower update.corruption's cost, or the pictures' size.",
        timing=True,
    ),
)
