"""Give the same response the same probability under another wording of its prompt (the idea of arXiv 2009.05166).

Shapes: B sequences, T tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from rlkl.batch import Batch
from rlkl.functional.kl import kl_policy_to_reference_k3
from rlkl.functional.reduce import masked
from rlkl.signals import Signal, Signals
from rlkl.types import Example
from rlkl.updates.terms.base import Term
from rlkl.updates.terms.kl import token_mean
from rlkl.updates.terms.rewording.settings import RewordingSettings


class Rewording(Term):
    """``coef`` times KL(pi(.|x) || pi(.|x')) for a prompt x, held fixed, and its other wording x'.

    A k3 of the sampled tokens, with the sampler's log-probs as the fixed side. The tokens were drawn from that side, so
    the gradient of the k3 is in expectation that of this KL: minus the mean of grad log pi(y|x').
    """

    Settings = RewordingSettings
    settings: RewordingSettings
    role = "view"

    @property
    def needs(self) -> frozenset[Signal]:
        return frozenset({Signal.POLICY_LOGPROBS})

    def viewed(self, examples: Sequence[Example], first_group: int) -> list[Example]:
        """Return each sampled response after the other wording of its prompt; stored answers are left out."""
        return [
            replace(
                example,
                prompt=replace(example.prompt, token_ids=example.prompt.wordings[self.settings.column]),
                group=first_group + example.group,
                role="view",
                list=None,
                rank=0,
            )
            for example in examples
            if example.role == "main" and example.rollout.completion.logprobs is not None
        ]

    def _nats(self, batch: Batch, signals: Signals) -> Tensor:
        """Return the k3 ``[B, T]`` of sampled response tokens, zero elsewhere, times the share of each in the mean."""
        own_BT = masked(batch.rollout_logprobs_BT, batch.uncorrected_BT)
        other_BT = masked(signals[Signal.POLICY_LOGPROBS], batch.uncorrected_BT)
        return token_mean(batch) * kl_policy_to_reference_k3(own_BT, other_BT)

    def loss(self, batch: Batch, signals: Signals) -> Tensor:
        return self.settings.coef * self._nats(batch, signals).sum()

    def metrics(self, batch: Batch, signals: Signals) -> Mapping[str, Tensor]:
        """Return ``nats`` per response token after the other wording."""
        return {"nats": self._nats(batch, signals).detach().sum()}
