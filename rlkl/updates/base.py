"""The one interface behind which every rule lives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from torch import nn

from rlkl.batch import Batch, LossOutput, Signal, Signals
from rlkl.types import Example, RolloutGroup


class PolicyUpdate(ABC):
    """How rollouts become a loss.

    The learner calls, in this order: `build_heads` once; then per step `select` on the scored groups, `credit` on the
    packed batch (frozen signals already in ``batch.signals``), and `loss` on each micro-batch.
    A rule holds settings only: no weights, no step counter, no device.
    """

    rule: ClassVar[str]
    """The name in the recipe (``update.rule``), for messages."""

    @property
    @abstractmethod
    def needs(self) -> frozenset[Signal]:
        """The signals that `credit` and `loss` read."""

    def build_heads(self, hidden_size: int) -> nn.Module | None:
        """Trainable modules beside the policy (a value head, mask heads). The learner optimises and saves them."""
        return None

    def select(self, groups: Sequence[RolloutGroup]) -> list[Example]:
        """Which rollouts train. Pure Python; all of them unless a rule says otherwise."""
        return [
            Example(prompt=group.prompt, rollout=rollout, group=number)
            for number, group in enumerate(groups)
            for rollout in group.rollouts
        ]

    def credit(self, batch: Batch) -> Batch:
        """Fill advantages (or returns) from rewards and frozen signals, over the whole batch. No gradient."""
        return batch

    @abstractmethod
    def loss(self, batch: Batch, signals: Signals) -> LossOutput:
        """The loss of one micro-batch. ``signals`` holds these rows' frozen signals and the differentiable ones."""
