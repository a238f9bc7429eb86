"""SuperHF: supervised learning from the policy's own best completions (arXiv 2310.16763); equations in README.md.

The filter in front of the rule (`rlkl.updates.filters`) keeps the best completions of each prompt. On those the policy
descends cross-entropy plus ``kl_coef`` times the exact KL(reference || policy) over the vocabulary. Rewards only rank:
there is no advantage, no ratio, no clipping.

Edge cases: a prompt without any kept completion trains nothing; ``kl_coef: 0`` needs no reference model and is plain
best-of-n fine-tuning, with one sample a prompt self-training.

Shapes: B sequences, T tokens.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor
from torch.nn.functional import pad

from rlkl.batch import Batch, LossOutput
from rlkl.functional import reduce
from rlkl.functional.reduce import masked
from rlkl.signals import Signal, Signals
from rlkl.updates.base import PolicyUpdate
from rlkl.updates.settings import SuperHfSettings
from rlkl.updates.terms.kl import Kl
from rlkl.updates.terms.settings import KlSettings


class SuperHf(PolicyUpdate):
    """Cross-entropy on kept completions and a full-vocabulary KL prior; needs neither advantages nor returns."""

    rule: ClassVar[str] = "superhf"

    def __init__(self, settings: SuperHfSettings) -> None:
        self.settings = settings
        prior = KlSettings(coef=settings.kl_coef, direction="model_to_policy", top_k=settings.kl_top_k)
        self.kl = Kl(prior, self._kl_weights)

    @property
    def needs(self) -> frozenset[Signal]:
        return frozenset({Signal.POLICY_LOGPROBS}) | (self.kl.needs if self.settings.kl_coef > 0 else set())

    def loss(self, batch: Batch, signals: Signals) -> LossOutput:
        """Return terms ``cross_entropy`` and, unless ``kl_coef`` is 0, ``kl``."""
        policy_BT = masked(signals[Signal.POLICY_LOGPROBS], batch.response_BT)
        cross_entropy = -(self._token_weights(batch) * policy_BT).sum()
        if self.settings.kl_coef == 0:
            return LossOutput(loss=cross_entropy, terms={"cross_entropy": cross_entropy.detach()}, metrics={})
        kl = self.kl.loss(batch, signals)
        return LossOutput(
            loss=cross_entropy + kl,
            terms={"cross_entropy": cross_entropy.detach(), "kl": kl.detach()},
            metrics={"kl/exact_reference_to_policy": self.kl.metrics(batch, signals)["nats"]},
        )

    def _token_weights(self, batch: Batch) -> Tensor:
        """Average over all learned tokens: the response, with ``compat`` without its end-of-sequence token."""
        if not self.settings.compat:
            return reduce.token_mean_weights(batch.response_BT, batch.denominators) * batch.weight_B.unsqueeze(1)
        followed_BT = pad(batch.response_BT[:, 1:], (0, 1))
        learned_BT = batch.response_BT & (followed_BT | batch.truncated_B.unsqueeze(1))
        return learned_BT.float() / max(batch.denominators.tokens - batch.denominators.stopped, 1)

    def _kl_weights(self, batch: Batch) -> Tensor:
        """Average over each sequence's tokens, then over sequences; with ``compat`` sum, one position late.

        Late: the KL at the response's first token is left out. The KL at its end-of-sequence token, which ``compat``
        does not learn, is then the one after the last learned token, as in the reference code.
        """
        if not self.settings.compat:
            return reduce.sequence_mean_weights(batch.response_BT, batch.denominators) * batch.weight_B.unsqueeze(1)
        late_BT = batch.response_BT & pad(batch.response_BT[:, :-1], (1, 0))
        return late_BT.float() / late_BT.sum(dim=1, keepdim=True).clamp(min=1)
