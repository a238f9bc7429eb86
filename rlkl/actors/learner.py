"""The learner in a Ray actor."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlkl.actors.calls import wait
from rlkl.learner.manifest import SavedFile
from rlkl.learner.sharing import token_in
from rlkl.types import Learned, Probe, Selection

LEARNER = "the learner"


class RayLearner:
    """Calls the learner's actor; each call has a deadline. `rlkl.actors.shells.LearnerWorker` has the other side."""

    def __init__(self, actor: Any, *, timeout_s: float) -> None:
        self.actor = actor
        self._timeout_s = timeout_s

    def call(self, what: str, ref: Any, *, calls: int = 1) -> Any:
        """Wait for an answer of the actor; raises `DeadlineError` or `ActorDiedError`, which name ``what``.

        ``calls``: so many times the deadline of one call.
        """
        return wait(ref, who=LEARNER, what=what, timeout_s=self._timeout_s * calls)

    def learn(self, selection: Selection, *, step: int, probes: Sequence[Probe], samples: bool) -> Learned:
        """See `rlkl.training.hands.LearnerHandle.learn`."""
        ref = self.actor.learn.remote(selection.examples, selection.left_out, probes, (step, samples))
        return self.call("learn", ref, calls=2)  # the frozen passes, and the training

    def finished_steps(self) -> int:
        """See `Learner.finished_steps`. An earlier call that still runs ends first."""
        return self.call("name its last step", self.actor.finished_steps.remote())

    def save(self, folder: Path) -> dict[str, SavedFile]:
        """See `Learner.save`."""
        return self.call("save", self.actor.save.remote(str(folder)))

    def restore(self, folder: Path) -> None:
        """See `Learner.restore`."""
        self.call("restore its state", self.actor.restore.remote(str(folder)))

    def check_shares(self, run_dir: Path) -> None:
        """Raise `EnvironmentProblem` unless the actor reads and writes the same run folder as this process."""
        with token_in(run_dir) as token:
            token.check(self.call("look at the run folder", self.actor.look.remote(token)), LEARNER)
