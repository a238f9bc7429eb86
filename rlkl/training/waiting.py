"""Name each part of the first step when it starts: it takes longest, and no metric shows its progress yet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

START = "start"
_NOTES = {
    START: "publishing the policy to the rollout workers",
    "rollout": "sampling the first completions; an engine may compile before that",
    "reward": "waiting for the scores of the first completions",
    "learner": "training: the first step of the learner",
    "publish": "publishing the first trained weights",
}
"""Note by the part of a step, as `rlkl.training.clock.Clock` names it."""


@dataclass(slots=True, kw_only=True)
class Waiting:
    """Notes each part of a step when it starts for the first time in this process, and never again."""

    note: Callable[[str], None]
    """`Tracker.note`."""
    noted: set[str] = field(default_factory=set)

    def enter(self, part: str) -> None:
        """Note that ``part`` starts, if it is the first time."""
        if part not in self.noted:
            self.noted.add(part)
            self.note(_NOTES[part])
