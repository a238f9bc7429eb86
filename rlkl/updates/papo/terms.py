"""PAPO's own parts of the loss: the perception KL and the double entropy (arXiv 2507.06448, eqs. 3 to 5).

Both depend on the log-probs of the same tokens given the picture (clean) and given a corrupted copy of it. Sequences
without a picture add nothing. Shapes: B sequences, T tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from rlkl.batch import Batch
from rlkl.functional import perception
from rlkl.functional.reduce import masked
from rlkl.signals import Signal, Signals
from rlkl.updates.papo.settings import PapoSettings
from rlkl.updates.terms.base import Term
from rlkl.updates.terms.kl import Weights, token_mean


class PictureTerm(Term):
    """A term over the response tokens of sequences with a picture, annealed as the settings name."""

    settings: PapoSettings

    @property
    def view(self) -> Signal:
        """The corrupted log-probs: computed in each pass with ``recompute``, else once a step."""
        return replace(Signal.CORRUPTED_LOGPROBS, moment="live" if self.settings.recompute else "step_start")

    @property
    def needs(self) -> frozenset[Signal]:
        return frozenset({Signal.POLICY_LOGPROBS, self.view})

    def annealing(self, progress: float) -> float:
        """Return gamma now over gamma at the start: 1, or falling linearly until ``anneal_over`` of the run is done."""
        if self.settings.anneal_to is None:
            return 1.0
        end = self.settings.anneal_to / self.settings.perception_coef
        return 1.0 + (end - 1.0) * min(progress / self.settings.anneal_over, 1.0)

    def clean(self, batch: Batch, signals: Signals) -> Tensor:
        """Return the log-probs ``[B, T]`` given the picture, zero elsewhere."""
        return masked(signals[Signal.POLICY_LOGPROBS], picture_tokens(batch))

    def corrupted(self, batch: Batch, signals: Signals) -> Tensor:
        """Return the log-probs ``[B, T]`` given the corrupted picture, zero elsewhere; constants without recompute."""
        corrupted_BT = masked(signals[self.view], picture_tokens(batch))
        return corrupted_BT if self.settings.recompute else corrupted_BT.detach()


class PerceptionKl(PictureTerm):
    """Minus gamma times the k3 of clean against corrupted, summed as the rule sums its own loss."""

    def __init__(self, settings: PapoSettings, weights: Weights) -> None:
        super().__init__(settings)
        self.weights = weights

    def loss(self, batch: Batch, signals: Signals) -> Tensor:
        kl_BT = self._kl(batch, signals)
        return -self.annealing(batch.progress) * self.settings.perception_coef * (self.weights(batch) * kl_BT).sum()

    def metrics(self, batch: Batch, signals: Signals) -> Mapping[str, Tensor]:
        """Return the mean per picture token, and the mean over responses of its variance within a response."""
        kl_BT, counts = self._kl(batch, signals).detach(), batch.denominators
        variance_B = perception.variance_within_responses(kl_BT, picture_tokens(batch))
        return {
            "perception/kl": kl_BT.sum() / counts.pictured_tokens,
            "perception/kl_variance": variance_B.sum() / counts.pictured_sequences,
        }

    def _kl(self, batch: Batch, signals: Signals) -> Tensor:
        return perception.kl_clean_to_corrupted_k3(self.clean(batch, signals), self.corrupted(batch, signals))


class CleanEntropy(PictureTerm):
    """eta1 times the mean negative log-probability given the picture: a token mean whatever the aggregation."""

    def loss(self, batch: Batch, signals: Signals) -> Tensor:
        clean_BT = self.clean(batch, signals)
        return -self.annealing(batch.progress) * self.settings.entropy_coef * (token_mean(batch) * clean_BT).sum()

    def metrics(self, batch: Batch, signals: Signals) -> Mapping[str, Tensor]:
        total = self.clean(batch, signals).detach().sum()
        return {"perception/entropy_clean": -total / batch.denominators.pictured_tokens}


class CorruptedEntropy(PictureTerm):
    """eta2 times the mean negative log-probability given the corrupted picture."""

    def loss(self, batch: Batch, signals: Signals) -> Tensor:
        weight_BT = token_mean(batch) * self.corrupted(batch, signals)
        return -self.annealing(batch.progress) * self.settings.corrupted_entropy_coef * weight_BT.sum()

    def metrics(self, batch: Batch, signals: Signals) -> Mapping[str, Tensor]:
        total = self.corrupted(batch, signals).detach().sum()
        return {"perception/entropy_corrupted": -total / batch.denominators.pictured_tokens}


def picture_tokens(batch: Batch) -> Tensor:
    """Return the response tokens of sequences with a picture, ``[B, T]`` bool."""
    return batch.response_BT & batch.pictured_B.unsqueeze(1)
