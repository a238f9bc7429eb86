"""SuperHF: supervised learning from the policy's own best completions (arXiv 2310.16763); equations in ``superhf.md``.

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

from rlkl.batch import Batch, LossOutput, Signal, Signals
from rlkl.functional import reduce
from rlkl.functional.reduce import masked
from rlkl.updates.base import PolicyUpdate
from rlkl.updates.settings import SuperHfSettings


class SuperHf(PolicyUpdate):
    """Cross-entropy on kept completions and a full-vocabulary KL prior; needs neither advantages nor returns."""

    rule: ClassVar[str] = "superhf"

    def __init__(self, settings: SuperHfSettings) -> None:
        self.settings = settings

    @property
    def needs(self) -> frozenset[Signal]:
        if self.settings.kl_coef > 0:
            return frozenset({Signal.POLICY_LOGPROBS, Signal.KL_REFERENCE_TO_POLICY})
        return frozenset({Signal.POLICY_LOGPROBS})

    @property
    def kl_top_k(self) -> int | None:
        return self.settings.kl_top_k

    def loss(self, batch: Batch, signals: Signals) -> LossOutput:
        """Terms ``cross_entropy`` and, unless ``kl_coef`` is 0, ``kl``."""
        policy_BT = masked(signals[Signal.POLICY_LOGPROBS], batch.response_BT)
        cross_entropy = -(self._token_weights(batch) * policy_BT).sum()
        if self.settings.kl_coef == 0:
            return LossOutput(loss=cross_entropy, terms={"cross_entropy": cross_entropy.detach()}, metrics={})
        kl_BT = masked(signals[Signal.KL_REFERENCE_TO_POLICY], batch.response_BT)
        kl = self.settings.kl_coef * (self._kl_weights(batch) * kl_BT).sum()
        return LossOutput(
            loss=cross_entropy + kl,
            terms={"cross_entropy": cross_entropy.detach(), "kl": kl.detach()},
            metrics={"kl/exact_reference_to_policy": kl_BT.detach().sum() / batch.denominators.tokens},
        )

    def _token_weights(self, batch: Batch) -> Tensor:
        """The mean over all tokens that are learned: the response, under ``compat`` without its end-of-sequence."""
        if not self.settings.compat:
            return reduce.token_mean_weights(batch.response_BT, batch.denominators)
        followed_BT = pad(batch.response_BT[:, 1:], (0, 1))
        learned_BT = batch.response_BT & (followed_BT | batch.truncated_B.unsqueeze(1))
        return learned_BT.float() / max(batch.denominators.tokens - batch.denominators.stopped, 1)

    def _kl_weights(self, batch: Batch) -> Tensor:
        """Each sequence's token mean, averaged over sequences; under ``compat`` summed, one position late.

        Late: the KL at the response's first token is left out. That at its end-of-sequence token, which ``compat`` does
        not learn, is then the one after the last learned token, as in the reference code.
        """
        if not self.settings.compat:
            return reduce.sequence_mean_weights(batch.response_BT, batch.denominators)
        late_BT = batch.response_BT & pad(batch.response_BT[:, :-1], (1, 0))
        return late_BT.float() / late_BT.sum(dim=1, keepdim=True).clamp(min=1)
