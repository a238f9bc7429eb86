"""Filters: they choose the rollouts of each prompt that reach a rule. Pure Python; for any rule."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from rlkl.types import Rollout, RolloutGroup
from rlkl.updates.settings import FilterSettings


def filter_groups(groups: Sequence[RolloutGroup], settings: FilterSettings | None) -> list[RolloutGroup]:
    """Keep the rollouts of each group that pass the filter, best first; a group may be left without any.

    Completions without visible text are never kept. Rollouts of equal reward keep the order in which they were sampled;
    ``top_k`` and ``top_fraction`` (rounded up) depend on the order of a prompt's rewards alone, not on their size.
    """
    if settings is None:
        return list(groups)
    return [replace(group, rollouts=tuple(_kept(group.rollouts, settings))) for group in groups]


def _kept(rollouts: Sequence[Rollout], settings: FilterSettings) -> Sequence[Rollout]:
    written = [rollout for rollout in rollouts if rollout.completion.text.strip()]
    best_first = sorted(written, key=lambda rollout: -rollout.reward)
    if settings.keep == "threshold":
        return [rollout for rollout in best_first if rollout.reward >= settings.value]
    if settings.keep == "top_k":
        return best_first[: int(settings.value)]
    # Rounded first: 0.07 * 100 is a hair above 7, and its ceiling 8.
    return best_first[: math.ceil(round(settings.value * len(best_first), 9))]
