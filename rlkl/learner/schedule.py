"""The learning rate as a function of the run's progress."""

from __future__ import annotations

import math

from rlkl.recipe import LearnerSection


def schedule_position(step: int, made: int, count: int, *, per_step: int) -> float:
    """Return where optimizer step ``made`` of ``count`` (from 0) of training step ``step`` is in the schedule.

    A training step takes up ``per_step`` places (epochs x minibatches), however many optimizer steps it makes: dropped
    groups can leave fewer, or none. Its last optimizer step is always at its last place, so that the schedule ends with
    the run. Without dropped groups the position is the number of the optimizer step.
    """
    return step * per_step + per_step * (made + 1) / count - 1


def learning_rate(section: LearnerSection, position: float, total: int) -> float:
    """Return the learning rate at a position (from 0) of a schedule with ``total`` places.

    It rises linearly over ``warmup_steps`` places (the first one already moves), then stays, or falls along a line or
    half a cosine to ``final_lr_fraction`` of the peak at the last place.
    """
    if position < section.warmup_steps:
        return min(section.lr * (position + 1) / section.warmup_steps, section.lr)
    if section.schedule == "constant":
        return section.lr
    span = max(total - 1 - section.warmup_steps, 1)
    progress = min((position - section.warmup_steps) / span, 1.0)
    remaining = 1.0 - progress if section.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
    return section.lr * (section.final_lr_fraction + (1.0 - section.final_lr_fraction) * remaining)
