"""The KL of the mean answer of many prompts to a prior, against collapse onto one answer (RePRI, arXiv 2012.06166).

Shapes: B sequences, T tokens, K answer tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from rlkl.batch import Batch
from rlkl.signals import Signal, Signals
from rlkl.updates.terms.base import Term
from rlkl.updates.terms.settings import MarginalKlSettings

_SMALLEST = 1e-6


class MarginalKl(Term):
    """``coef`` times the gradient of KL(m || prior), m the mean over answers of the policy's choice between K tokens.

    This KL is no sum over sequences, since m is a mean inside a logarithm. Its gradient is one: the mean over answers
    of sum_k log(m_k / prior_k) grad p_k. So the loss is that sum with a fixed m: a running mean of the steps before.
    """

    Settings = MarginalKlSettings
    settings: MarginalKlSettings

    def __init__(self, settings: MarginalKlSettings) -> None:
        super().__init__(settings)
        self._means: list[float] | None = None
        """m, by token; None before the first step with an answer, which therefore pulls nowhere."""

    @property
    def signal(self) -> Signal:
        """The log-probs ``[B, T, K]`` of the answer tokens, among each other."""
        return Signal("answers", tokens=tuple(self.settings.token_ids))

    @property
    def needs(self) -> frozenset[Signal]:
        return frozenset({self.signal})

    @property
    def slopes(self) -> list[float]:
        """log(m_k / prior_k), the pull on each answer token in nats."""
        means, prior = self._means or self.settings.prior_shares, self.settings.prior_shares
        return [math.log(max(m, _SMALLEST) / p) for m, p in zip(means, prior, strict=True)]

    def _answers(self, batch: Batch, signals: Signals) -> tuple[Tensor, Tensor]:
        """Return each answer's weight ``[B, T]``, zero elsewhere, and the sum over answers of weight times p ``[K]``.

        The answer of a sequence is its last response token that is one of the K.
        """
        ids_K = torch.tensor(self.settings.token_ids, device=batch.token_ids_BT.device)
        at_BT = batch.response_BT & torch.isin(batch.token_ids_BT, ids_K)
        at_BT &= at_BT.flip(1).cumsum(dim=1).flip(1) == 1
        weights_BT = at_BT * batch.weight_B.unsqueeze(1) / batch.denominators.sequences
        logprobs_BTK = torch.where(at_BT.unsqueeze(-1), signals[self.signal], 0.0)
        return weights_BT, (weights_BT.unsqueeze(-1) * logprobs_BTK.exp()).sum(dim=(0, 1))

    def loss(self, batch: Batch, signals: Signals) -> Tensor:
        _, shares_K = self._answers(batch, signals)
        return self.settings.coef * (shares_K * torch.tensor(self.slopes, device=shares_K.device)).sum()

    def metrics(self, batch: Batch, signals: Signals) -> Mapping[str, Tensor]:
        """Return the share of sequences with an ``answers``, and that share times m_k as ``token_<id>``."""
        weights_BT, shares_K = self._answers(batch, signals)
        shares = zip(self.settings.token_ids, shares_K.detach(), strict=True)
        return {"answers": weights_BT.sum(), **{f"token_{token}": share for token, share in shares}}

    def observe(self, metrics: Mapping[str, float]) -> None:
        if metrics["answers"] > 0:
            now = [metrics[f"token_{token}"] / metrics["answers"] for token in self.settings.token_ids]
            memory = self.settings.memory if self._means is not None else 0.0
            self._means = [memory * m + (1 - memory) * x for m, x in zip(self._means or now, now, strict=True)]

    def state(self) -> dict[str, float]:
        return {f"mean_{token}": m for token, m in zip(self.settings.token_ids, self._means or (), strict=False)}

    def load_state(self, state: Mapping[str, float]) -> None:
        self._means = [state[f"mean_{token}"] for token in self.settings.token_ids] if state else None
