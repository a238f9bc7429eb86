"""The learner's part of a checkpoint: trained parameters, optimizer, and the state of the rule."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rlkl.errors import CheckpointError
from rlkl.learner.stepping import Optimization
from rlkl.updates.base import PolicyUpdate

STATE_FILE = "learner.pt"


@dataclass(slots=True, kw_only=True)
class LearnerState:
    """The state that a resume needs beside the model that the run started from."""

    optimization: Optimization
    update: PolicyUpdate
    finished_steps: int = 0
    """Training steps that are in the weights."""

    def save(self, folder: Path) -> None:
        """Write `STATE_FILE`; raises `LearnerError` if an optimizer step broke off half-way."""
        self.optimization.check_whole()
        torch.save(
            {
                "trained": {name: p.detach().cpu() for name, p in self.optimization.trained.items()},
                "optimizer": self.optimization.optimizer.state_dict(),
                "optimizer_steps": self.optimization.steps,
                "finished_steps": self.finished_steps,
                "update": self.update.state(),
            },
            folder / STATE_FILE,
        )

    def restore(self, folder: Path, device: torch.device) -> None:
        """Load the state that `save` wrote; raises `CheckpointError` if it is of another model."""
        path, trained = folder / STATE_FILE, self.optimization.trained
        try:
            state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise CheckpointError(
                f"{path} cannot be read; it is damaged. Remove {folder} to go on from an older checkpoint"
            ) from error
        if (saved := set(state["trained"])) != set(trained):
            difference = sorted(saved ^ set(trained))
            raise CheckpointError(
                f"{path} holds other parameters than this recipe trains; they differ in "
                f"{', '.join(difference[:3])} ({len(difference)} in all). Resume with the recipe of that run."
            )
        self.optimization.load_weights(state["trained"])
        self.optimization.optimizer.load_state_dict(state["optimizer"])
        self.optimization.steps = state["optimizer_steps"]
        self.finished_steps = state["finished_steps"]
        self.update.load_state(state["update"])
