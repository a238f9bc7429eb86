"""Warnings during a run: the rule's alarms, and steps without gradient."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

logger = logging.getLogger(__name__)

STEPS_WITHOUT_GRADIENT = 10
"""Warn after so many steps in a row, and again each time their number has doubled."""


@dataclass(slots=True, kw_only=True)
class Watch:
    """Prints a warning when it begins to hold, not in each step."""

    samples: Path
    """The folder with the samples, for the message."""
    alarmed: frozenset[str] = frozenset()
    """The rule's alarms that were on after the last step."""
    steps_without_gradient: int = 0

    def alarms(self, alarms: Mapping[str, str]) -> None:
        """Print the alarms that were not on in the step before."""
        for name in sorted(alarms.keys() - self.alarmed):
            logger.warning("%s", alarms[name])
        self.alarmed = frozenset(alarms)

    def gradient(self, metrics: Mapping[str, float]) -> None:
        """Warn if many steps in a row had no gradient. A sparse reward may still succeed later, so the run goes on."""
        self.steps_without_gradient = 0 if metrics["optim/grad_norm"] > 0 else self.steps_without_gradient + 1
        doublings = self.steps_without_gradient / STEPS_WITHOUT_GRADIENT
        if doublings < 1 or not math.log2(doublings).is_integer():
            return
        problem = f"the last {self.steps_without_gradient} steps had no gradient"
        if "reward/std" in metrics:
            spread = metrics["reward/std"]
            problem += f" (reward/std is {spread:.3g}): samples of a prompt with equal rewards leave nothing to compare"
        logger.warning(
            "%s. Look at the samples in %s: is the reward constant, or are the prompts too hard or too easy? More "
            "rollout.samples_per_prompt or a finer reward helps",
            problem,
            self.samples,
        )
