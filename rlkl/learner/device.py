"""The device that the learner computes on."""

from __future__ import annotations

import torch

from rlkl.errors import EnvironmentProblem
from rlkl.recipe import Recipe


def learner_device(choice: str) -> torch.device:
    """The device behind ``learner.device``; raises `EnvironmentProblem` if this process has no CUDA device."""
    has_cuda = torch.cuda.is_available()
    if choice == "cuda" and not has_cuda:
        raise EnvironmentProblem(
            "learner.device = 'cuda', but the learner sees no CUDA device: its machine has no GPU, torch was built "
            "without CUDA, or Ray reserved no GPU for it (learner.gpus). Set learner.device=auto, or run it where a "
            "GPU is free"
        )
    if choice == "auto":
        choice = "cuda" if has_cuda else "cpu"
    return torch.device(choice)


def check_device(recipe: Recipe) -> None:
    """Refuse ``learner.device`` before Ray starts, if the learner will run on this machine."""
    if recipe.cluster.resolved_address is None:
        learner_device(recipe.learner.device)
