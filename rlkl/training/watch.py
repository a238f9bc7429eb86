"""Alarms of the loop: those of the rule, and steps without gradient. `rlkl.tracking.alarms` decides when one begins."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rlkl.tracking.alarms import Alarms, warn_of

STEPS_WITHOUT_GRADIENT = 10
"""Warn after so many steps in a row, and again each time their number has doubled."""


@dataclass(slots=True, kw_only=True)
class Watch:
    """Feeds the alarms of the loop with each step."""

    samples: Path
    """The folder with the samples, for the message."""
    of_rule: Alarms = field(default_factory=Alarms)
    of_gradient: Alarms = field(default_factory=Alarms)
    steps_without_gradient: int = 0

    def resume(self, alarms: Mapping[str, str]) -> None:
        """Note the rule's alarms that were on after the last step, without a warning."""
        self.of_rule.hold(alarms)

    def alarms(self, alarms: Mapping[str, str]) -> None:
        """Note the rule's alarms of a step; warn about those that begin."""
        warn_of({name: alarms[name] for name in self.of_rule.hold(alarms)})

    def gradient(self, metrics: Mapping[str, float]) -> None:
        """Warn if many steps in a row had no gradient. A sparse reward may still succeed later, so the run goes on."""
        self.steps_without_gradient = 0 if metrics["optim/grad_norm"] > 0 else self.steps_without_gradient + 1
        reached = [f"{steps} steps" for steps in _doublings(self.steps_without_gradient)]
        warn_of({name: self._no_gradient(metrics) for name in self.of_gradient.hold(reached)})

    def _no_gradient(self, metrics: Mapping[str, float]) -> str:
        problem = f"the last {self.steps_without_gradient} steps had no gradient"
        if "reward/std" in metrics:
            spread = metrics["reward/std"]
            problem += f" (reward/std is {spread:.3g}): samples of a prompt with equal rewards leave nothing to compare"
        return (
            f"{problem}. Look at the samples in {self.samples}: is the reward constant, or are the prompts too hard or "
            "too easy? More rollout.samples_per_prompt or a finer reward helps"
        )


def _doublings(steps: int) -> Iterator[int]:
    """Yield 10, 20, 40, ... up to ``steps``: each is an alarm of its own."""
    limit = STEPS_WITHOUT_GRADIENT
    while limit <= steps:
        yield limit
        limit *= 2
