"""The device that the learner computes on."""

from __future__ import annotations

import torch

from rlkl.recipe import Recipe
from rlkl.recipe.device import check_cuda


def learner_device(choice: str) -> torch.device:
    """Return the device behind ``learner.device``; raises `EnvironmentProblem` if this process has no CUDA device."""
    has_cuda = torch.cuda.is_available()
    check_cuda(choice, has_cuda=has_cuda)
    if choice == "auto":
        choice = "cuda" if has_cuda else "cpu"
    return torch.device(choice)


def check_device(recipe: Recipe) -> None:
    """Refuse ``learner.device`` before Ray starts, if the learner will run on this machine."""
    if recipe.cluster.resolved_address is None:
        learner_device(recipe.learner.device)
