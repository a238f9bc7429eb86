"""The metrics of ``data.sampler``."""

from __future__ import annotations

from rlkl.types import MetricDefinition

CURRICULUM_METRICS: tuple[MetricDefinition, ...] = (
    MetricDefinition(
        key="data/pass_rate",
        unit="fraction",
        formula=(
            "With data.sampler pass_rate or bandit: mean over the step's groups of the share of a group's scored "
            "completions whose reward before normalisation is at least data.curriculum.passes_at."
        ),
        bad="Near 0 or 1: the draws do not find prompts in the middle; look at data.curriculum.passes_at.",
    ),
    MetricDefinition(
        key="data/top_probability",
        unit="fraction",
        formula=(
            "With data.sampler pass_rate or bandit: the largest probability of a prompt, or of a bucket, in the last "
            "draw of the step."
        ),
        bad="For prompts, above 1 / rollout.prompts_per_step: a step repeats one; raise data.curriculum.floor.",
    ),
)
