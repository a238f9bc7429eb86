"""The order in which learner and engines use the memory of the GPUs that they share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlkl.actors.calls import wait_all
from rlkl.actors.learners import LearnerRanks
from rlkl.types import Probe


class MemoryTurns:
    """Puts the engines to sleep before the learner needs the memory, and wakes them for a publish.

    The workers enforce the order themselves (`rlkl.rollout.sleeping`). On a CPU nothing is freed, and the order is the
    same.
    """

    def __init__(self, workers: Sequence[Any], names: Sequence[str], *, timeout_s: float) -> None:
        self._workers, self._names, self._timeout_s = workers, names, timeout_s
        self._asleep = False
        self.scores_before: list[Any] = []
        """References to the log-probs of the last probes, scored before the engines lost their weights."""

    def to_learner(self, probes: Sequence[Probe] = ()) -> None:
        """Let the engines score ``probes``, if there are any, and then sleep; do nothing if they sleep already.

        Raises the errors of `wait_all`.
        """
        if self._asleep:
            return
        self.scores_before = [worker.score.remote(probes) for worker in self._workers] if probes else []
        self._wait(self.scores_before, "score the probes")
        self._asleep = True
        self._wait([worker.sleep.remote() for worker in self._workers], "sleep")

    def to_engines(self, ranks: LearnerRanks) -> None:
        """Free the learner's memory, and let the engines allocate that of their weights if they sleep.

        The cache follows when they have taken in new weights.
        """
        ranks.call("free memory for the engines", "rest")
        if self._asleep:
            self._wait([worker.wake_weights.remote() for worker in self._workers], "wake")
            self._asleep = False

    def _wait(self, refs: Sequence[Any], what: str) -> None:
        wait_all(refs, who=self._names[: len(refs)], what=what, timeout_s=self._timeout_s)
