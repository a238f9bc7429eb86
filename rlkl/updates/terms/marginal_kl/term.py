"""The KL of the mean answer of many prompts to a prior, against collapse onto one answer (RePRI, arXiv 2012.06166)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from rlkl.batch import Batch
from rlkl.functional import marginal
from rlkl.signals import Signal, Signals
from rlkl.updates.terms.base import Term
from rlkl.updates.terms.marginal_kl.settings import MarginalKlSettings


class MarginalKl(Term):
    """``coef`` times the gradient of KL(m || prior), m the mean over answers of the policy's choice between K tokens.

    This KL is no sum over sequences, since m is a mean inside a logarithm. Its gradient is one: the mean over answers
    of sum_k log(m_k / prior_k) grad p_k. So the loss is that sum with a fixed m: a running mean of the steps before.
    """

    Settings = MarginalKlSettings
    settings: MarginalKlSettings
    _means: list[float] | None = None
    """m, by token; None before the first step with an answer, which therefore pulls nowhere."""

    @property
    def needs(self) -> frozenset[Signal]:
        """The log-probs ``[B, T, K]`` of the answer tokens, among each other."""
        return frozenset({Signal("answers", tokens=tuple(self.settings.token_ids))})

    def _answers(self, batch: Batch, signals: Signals) -> tuple[Tensor, Tensor]:
        """Return each answer's weight ``[B, T]``, else zero, and the sum over answers of weight times p, ``[K]``."""
        at_BT = marginal.last_of(batch.token_ids_BT, batch.response_BT, self.settings.token_ids)
        weights_BT = at_BT * batch.weight_B.unsqueeze(1) / batch.denominators.sequences
        (signal,) = self.needs
        return weights_BT, marginal.summed_shares(weights_BT, signals[signal])

    def loss(self, batch: Batch, signals: Signals) -> Tensor:
        prior = self.settings.prior_shares
        return self.settings.coef * marginal.pull(self._answers(batch, signals)[1], self._means or prior, prior)

    def metrics(self, batch: Batch, signals: Signals) -> Mapping[str, Tensor]:
        """Return the share of sequences with an ``answers``, and that share times m_k as ``token_<id>``."""
        weights_BT, shares_K = self._answers(batch, signals)
        shares = zip(self.settings.token_ids, shares_K.detach(), strict=True)
        return {"answers": weights_BT.sum(), **{f"token_{token}": share for token, share in shares}}

    def observe(self, metrics: Mapping[str, float]) -> None:
        if metrics["answers"] > 0:
            now = [metrics[f"token_{token}"] / metrics["answers"] for token in self.settings.token_ids]
            self._means = marginal.blended(self._means, now, self.settings.memory)

    def state(self) -> dict[str, float]:
        return {f"mean_{token}": m for token, m in zip(self.settings.token_ids, self._means or (), strict=False)}

    def load_state(self, state: Mapping[str, float]) -> None:
        self._means = [state[f"mean_{token}"] for token in self.settings.token_ids] if state else None
