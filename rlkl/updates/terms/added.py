"""Hooks of a term that adds sequences of other roles to a step: replayed ones, and responses after another wording."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rlkl.types import Example


class AddsSequences:
    """A term that adds none, by default."""

    def replayed(self, *, seed: int, step: int, first_group: int) -> list[Example]:
        """Return sequences of the role ``replay`` to add to a step; their groups count from ``first_group``.

        Called in the learner once a step. The result may depend on nothing but the arguments, so that all ranks, and a
        resumed run, get the same.
        """
        return []

    def viewed(self, examples: Sequence[Example], first_group: int) -> list[Example]:
        """Return sequences of the role ``view`` to add to a step: responses of ``examples`` after another wording.

        Their groups count from ``first_group``. Called in the learner once a step.
        """
        return []

    @property
    def reads_replay(self) -> bool:
        """Whether `begin_replay` reads the metrics of the replayed sequences at the start of a step."""
        return False

    def begin_replay(self, metrics: Mapping[str, float]) -> Mapping[str, float]:
        """Take `metrics` of all replayed sequences with the weights at the start of the step; return what to log.

        Called before the step's first `loss` if `reads_replay`. It costs a forward pass over these sequences.
        """
        return {}
