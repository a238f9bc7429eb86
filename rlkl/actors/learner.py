"""The learner in Ray actors, as the loop sees it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rlkl.actors.learners import LearnerRanks, rank_names
from rlkl.actors.turns import MemoryTurns
from rlkl.learner.manifest import SavedFile
from rlkl.learner.sharing import token_in
from rlkl.types import Example, Learned, Probe, Selection, TeacherView


class RayLearner:
    """Trains, saves and restores on all ranks."""

    def __init__(self, ranks: LearnerRanks, turns: MemoryTurns | None = None) -> None:
        """Call ``ranks``; with ``turns``, engines sleep before a step."""
        self.ranks = ranks
        self._turns = turns

    def learn(self, selection: Selection, *, step: int, probes: Sequence[Probe], samples: bool) -> Learned:
        """See `rlkl.training.hands.LearnerHandle.learn`."""
        if self._turns is not None:
            self._turns.to_learner(probes)
        arguments = (selection.examples, selection.left_out, probes, (step, samples))
        return self.ranks.call("learn", "learn", *arguments, calls=2)  # the frozen passes, and the training

    def keeps_reference(self) -> bool:
        """See `rlkl.training.hands.LearnerHandle.keeps_reference`."""
        return self.ranks.call("name its models", "keeps_reference")

    def reference_gaps(self, examples: Sequence[Example]) -> list[float]:
        """See `rlkl.training.hands.LearnerHandle.reference_gaps`."""
        if self._turns is not None:
            self._turns.to_learner()
        return self.ranks.call("measure the KL of an evaluation", "reference_gaps", examples)

    def teacher_views(self, examples: Sequence[Example]) -> list[TeacherView]:
        """See `rlkl.training.hands.LearnerHandle.teacher_views`."""
        assert self._turns is None, "the recipe refuses corrections while engines sleep"
        return self.ranks.call("compare samples with the teacher", "teacher_views", examples)

    def finished_steps(self) -> int:
        """See `Learner.finished_steps`. An earlier call that still runs ends first."""
        return self.ranks.call("name its last step", "finished_steps")

    def save(self, folder: Path) -> dict[str, SavedFile]:
        """See `Learner.save`."""
        return self.ranks.call("save", "save", str(folder))

    def restore(self, folder: Path) -> None:
        """See `Learner.restore`."""
        self.ranks.call("restore its state", "restore", str(folder))

    def check_shares(self, run_dir: Path) -> None:
        """Raise `EnvironmentProblem` unless every rank reads and writes the same run folder as this process."""
        with token_in(run_dir) as token:
            sightings = self.ranks.call_all("look at the run folder", "look", token)
            for sighting, name in zip(sightings, rank_names(len(sightings)), strict=True):
                token.check(sighting, name)
