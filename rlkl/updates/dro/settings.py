"""The settings of distributionally robust training. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from rlkl.schema import Section

DroGroups = Literal["with_spread", "all"]
"""The groups that get a weight: those whose rewards differ, or all. Groups without one keep their advantages."""


class DroSettings(Section):
    """Larger weights for prompt groups of low reward; see docs/choosing_prompts.md."""

    temperature: float = Field(
        default=1.0, gt=0, description="Reward by which a group must be lower to weigh e times as much."
    )
    rate: float = Field(default=0.1, gt=0, le=1, description="Share of a new step in the moving normaliser.")
    max_weight: float = Field(default=5.0, ge=1, description="Larger weights are cut, before the mean is set to 1.")


def check_advantages(dro: DroSettings | None, groups: DroGroups | None, *, rule: str) -> None:
    """Raise ValueError if there are weights, and the rule has no advantages to multiply with them."""
    if dro is not None and groups is None:
        raise ValueError(
            f"dro weighs the advantages of each prompt's group, and rule = {rule} does not declare any; take rule = "
            "grpo, papo or ppo, or leave dro out (a rule of your own declares them by Settings.dro_groups)"
        )


def check_groups(dro: DroSettings | None, *, normalized: Mapping[str, str], prompts_per_step: int) -> None:
    """Raise ValueError if groups have no mean rewards to compare. ``normalized``: how rewards are, by key."""
    if dro is None:
        return
    for key in [key for key, how in normalized.items() if how == "group"]:
        raise ValueError(
            f"update.dro compares the mean rewards of groups, and {key} = group sets each of them to 0; set it to "
            "none or batch, or leave update.dro out"
        )
    if prompts_per_step == 1:
        raise ValueError(
            "update.dro weighs the prompts of a step against each other, and rollout.prompts_per_step = 1; set 2 "
            "or more, or leave update.dro out"
        )
