"""The settings of distributionally robust training. No torch here."""

from __future__ import annotations

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
