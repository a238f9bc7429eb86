"""The KL between the policy and a frozen model, as a term of the loss.

| estimator | value | gradient |
|---|---|---|
| exact | KL of the next-token distributions, either direction | its own |
| k1 | log(policy / model) of the sampled token | that of k2: k1's own is zero in expectation |
| k2 | half the squared log-ratio | KL(policy ‖ model) |
| k3 | r - 1 - log r, r = model / policy (arXiv 2402.03300, eq. 4) | KL(model ‖ policy) |
| cauchy_schwarz | another divergence of the next-token distributions, symmetric (arXiv 2404.17951) | its own |
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

from torch import Tensor

from rlkl.batch import Batch
from rlkl.functional import kl, reduce
from rlkl.functional.reduce import masked
from rlkl.signals import Signal, Signals
from rlkl.updates.terms.base import Term
from rlkl.updates.terms.settings import SAMPLED, KlSettings

ESTIMATORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "k1": kl.kl_policy_to_reference_k1_descending_k2,
    "k2": kl.kl_policy_to_reference_k2,
    "k3": kl.kl_policy_to_reference_k3,
}
"""Estimators as a loss: log-probs of policy and frozen model ``[B, T]`` -> KL ``[B, T]``."""

Weights = Callable[[Batch], Tensor]
"""A micro-batch -> the weight ``[B, T]`` of each token in the sum."""


def token_mean(batch: Batch) -> Tensor:
    """Average over all response tokens of the step, each times its sequence's weight."""
    return reduce.token_mean_weights(batch.response_BT, batch.denominators) * batch.weight_B.unsqueeze(1)


class Kl(Term):
    """``coef`` times the KL to a frozen model. Rules pass ``weights`` to sum it as they sum their own loss."""

    Settings = KlSettings
    settings: KlSettings

    def __init__(self, settings: KlSettings, weights: Weights = token_mean) -> None:
        super().__init__(settings)
        self.weights = weights
        self._steering = kl.AdaptiveKl(
            value=settings.coef, target=settings.target or math.inf, horizon=settings.horizon
        )

    @property
    def coef(self) -> float:
        """The coefficient now: steered if the settings have a target."""
        return self._steering.coefficient if self.settings.target is not None else self.settings.coef

    @property
    def signal(self) -> Signal:
        """The signal that holds the frozen model's part: its log-probs, or the divergence itself."""
        if self.settings.estimator in SAMPLED:
            return Signal("logprobs", self.settings.to, moment="step_start")
        if self.settings.estimator == "cauchy_schwarz":
            return Signal("cauchy_schwarz", self.settings.to)
        quantity = "kl_from_policy" if self.settings.direction == "policy_to_model" else "kl_to_policy"
        return Signal(quantity, self.settings.to, top_k=self.settings.top_k)

    @property
    def needs(self) -> frozenset[Signal]:
        return frozenset({self.signal, Signal.POLICY_LOGPROBS} if self.settings.estimator in SAMPLED else {self.signal})

    def per_token(self, batch: Batch, signals: Signals) -> Tensor:
        """Return the KL ``[B, T]`` of each response token in nats, zero elsewhere, before free nats and weights."""
        model_BT = masked(signals[self.signal], batch.response_BT)
        if self.settings.estimator not in SAMPLED:
            return model_BT
        policy_BT = masked(signals[Signal.POLICY_LOGPROBS], batch.response_BT)
        return ESTIMATORS[self.settings.estimator](policy_BT, model_BT)

    def loss(self, batch: Batch, signals: Signals) -> Tensor:
        kl_BT = self.per_token(batch, signals)
        if self.settings.free_nats > 0:
            kl_BT = kl.free_nats(kl_BT, self.settings.free_nats)
        if self.settings.free_nats_per_sequence > 0:
            kl_BT = kl.free_nats_of_sequence(kl_BT, batch.response_BT, self.settings.free_nats_per_sequence)
        return self.coef * (self.weights(batch) * kl_BT).sum()

    def metrics(self, batch: Batch, signals: Signals) -> Mapping[str, Tensor]:
        """Return ``nats`` per token, and with a target ``nats_per_sequence`` and the coefficient."""
        total = self.per_token(batch, signals).detach().sum()
        found = {"nats": total / batch.denominators.tokens}
        if self.settings.target is not None:
            found["nats_per_sequence"] = total / batch.denominators.sequences
            share = batch.response_BT.any(dim=1).sum() / batch.denominators.sequences
            found["coef"] = self.coef * share
        return found

    def observe(self, metrics: Mapping[str, float]) -> None:
        if self.settings.target is not None:
            self._steering = self._steering.updated(metrics["nats_per_sequence"], int(metrics["sequences"]))

    def state(self) -> dict[str, float]:
        if self.settings.target is None:
            return {}
        return {"coef": self._steering.value, "error": self._steering.error}

    def load_state(self, state: Mapping[str, float]) -> None:
        if self.settings.target is not None:
            self._steering = replace(self._steering, value=state["coef"], error=state["error"])
