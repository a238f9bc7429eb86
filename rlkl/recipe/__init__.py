"""The recipe of a run: its sections, and how recipes are read, written and explained."""

from rlkl.recipe.eval_section import EvalDataSection, EvalSection
from rlkl.recipe.recipe import Recipe
from rlkl.recipe.reward_section import Normalize, RewardSection, ScoringSection
from rlkl.recipe.rollout_section import RolloutSection
from rlkl.recipe.sections import (
    CheckpointSection,
    ClusterSection,
    DataSection,
    FrozenModelSection,
    LearnerSection,
    LoraSection,
    ModelSection,
    RunSection,
    TrackingSection,
    WeightsSection,
)

__all__ = [
    "CheckpointSection",
    "ClusterSection",
    "DataSection",
    "EvalDataSection",
    "EvalSection",
    "FrozenModelSection",
    "LearnerSection",
    "LoraSection",
    "ModelSection",
    "Normalize",
    "Recipe",
    "RewardSection",
    "RolloutSection",
    "RunSection",
    "ScoringSection",
    "TrackingSection",
    "WeightsSection",
]
