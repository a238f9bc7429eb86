"""The exact KL to a frozen model at some tokens, over some ids of the vocabulary (SIU, arXiv 2405.12523)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from rlkl.batch import Batch
from rlkl.functional.reduce import masked
from rlkl.quantities import VocabularyMask
from rlkl.signals import Signal, Signals
from rlkl.updates.terms.base import Term
from rlkl.updates.terms.kl import token_mean
from rlkl.updates.terms.masked_kl.settings import MaskedKlSettings


class MaskedKl(Term):
    """``coef`` times the KL at the tokens that the mask keeps, divided by all response tokens of the step."""

    Settings = MaskedKlSettings
    settings: MaskedKlSettings

    @property
    def signal(self) -> Signal:
        """The exact KL over the ids that count, before the mask of tokens."""
        quantity = "kl_from_policy" if self.settings.direction == "policy_to_model" else "kl_to_policy"
        return Signal(quantity, self.settings.to, top_k=self.settings.top_k, vocabulary=self.vocabulary)

    @property
    def vocabulary(self) -> VocabularyMask | None:
        """The mask of the vocabulary; None: all ids count."""
        ids = tuple(sorted(set(self.settings.vocabulary_ids)))
        return VocabularyMask(ids, self.settings.vocabulary_keep, self.settings.renormalise) if ids else None

    @property
    def needs(self) -> frozenset[Signal]:
        return frozenset({self.signal})

    def kept(self, batch: Batch) -> Tensor:
        """Return the response tokens ``[B, T]`` at which the KL counts."""
        named_BT = torch.isin(
            batch.token_ids_BT, torch.tensor(self.settings.token_ids, device=batch.token_ids_BT.device)
        )
        return batch.response_BT & (named_BT if self.settings.keep == "named" else ~named_BT)

    def loss(self, batch: Batch, signals: Signals) -> Tensor:
        return self.settings.coef * (token_mean(batch) * masked(signals[self.signal], self.kept(batch))).sum()

    def metrics(self, batch: Batch, signals: Signals) -> Mapping[str, Tensor]:
        """Return ``nats`` per response token, and the share of response tokens that are ``kept``."""
        kept_BT = self.kept(batch)
        return {
            "nats": (token_mean(batch) * masked(signals[self.signal], kept_BT)).detach().sum(),
            "kept": kept_BT.sum() / batch.denominators.tokens,
        }
