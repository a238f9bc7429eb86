"""The learning rate as a function of the optimizer step."""

from __future__ import annotations

import math

from rlkl.recipe import LearnerSection


def learning_rate(section: LearnerSection, step: int, total_steps: int) -> float:
    """Learning rate of optimizer step ``step`` (from 0) of ``total_steps``.

    Rises linearly over ``warmup_steps`` (the first step already moves), then stays, or falls along a line or half a
    cosine to ``final_lr_fraction`` of the peak at the last step.
    """
    if step < section.warmup_steps:
        return section.lr * (step + 1) / section.warmup_steps
    if section.schedule == "constant":
        return section.lr
    span = max(total_steps - 1 - section.warmup_steps, 1)
    progress = min((step - section.warmup_steps) / span, 1.0)
    remaining = 1.0 - progress if section.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
    return section.lr * (section.final_lr_fraction + (1.0 - section.final_lr_fraction) * remaining)
