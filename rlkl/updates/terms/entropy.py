"""The entropy of the policy as a term of the loss."""

from __future__ import annotations

from torch import Tensor

from rlkl.batch import Batch
from rlkl.functional.reduce import masked
from rlkl.signals import Signal, Signals
from rlkl.updates.terms.base import Term
from rlkl.updates.terms.kl import token_mean
from rlkl.updates.terms.settings import EntropySettings


class Entropy(Term):
    """Minus ``coef`` times the mean entropy of the next-token distribution (arXiv 1602.01783)."""

    Settings = EntropySettings
    settings: EntropySettings

    @property
    def needs(self) -> frozenset[Signal]:
        return frozenset({Signal.POLICY_ENTROPY})

    def loss(self, batch: Batch, signals: Signals) -> Tensor:
        entropy_BT = masked(signals[Signal.POLICY_ENTROPY], batch.response_BT)
        return -self.settings.coef * (token_mean(batch) * entropy_BT).sum()
