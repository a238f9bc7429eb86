"""Hooks of a rule that adds sequences of other roles to a step: replayed ones, and responses after another wording."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from rlkl.batch import Batch
from rlkl.signals import Signals
from rlkl.types import Example


class AddsSequences:
    """A rule that adds none, by default."""

    def replayed(self, step: int, first_group: int) -> list[Example]:
        """Return sequences of the role ``replay`` to add to the step; their groups count from ``first_group``.

        Called in the learner once a step; the same on every rank and after a resume.
        """
        return []

    def viewed(self, examples: Sequence[Example], first_group: int) -> list[Example]:
        """Return sequences of the role ``view`` to add to the step: responses of ``examples`` after another wording.

        Called in the learner once a step. Their groups count from ``first_group``.
        """
        return []

    @property
    def reads_replay(self) -> bool:
        """Whether `begin_replay` reads the metrics of the replayed sequences at the start of a step."""
        return False

    def replay_metrics(self, batch: Batch, signals: Signals) -> Mapping[str, Tensor]:
        """Return sums over the replayed sequences of a micro-batch, for `begin_replay`. No gradient."""
        return {}

    def begin_replay(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Take the sums of `replay_metrics` over the step, once before its first `loss`; return metrics to log."""
        return {}
