"""Neighbouring tokens of one span, compared with a frozen model (the span loss of arXiv 2407.10068; docs/terms.md).

Shapes: B sequences, T tokens, I token ids.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rlkl.batch import Batch
from rlkl.functional.neighbours import NeighbourProducts, joined, looked_up, next_in_response
from rlkl.functional.reduce import masked
from rlkl.signals import Signal, Signals
from rlkl.updates.terms.base import Term
from rlkl.updates.terms.kl import token_mean
from rlkl.updates.terms.span.settings import SpanSettings
from rlkl.updates.terms.span.words import words_of

if TYPE_CHECKING:
    from rlkl.updates.base import ModelShape


class Span(Term):
    """``coef`` times the distance at the tokens that are of one span with the next, divided by all response tokens."""

    Settings = SpanSettings
    settings: SpanSettings
    _words: tuple[Tensor, Tensor] | None = None
    """By token id ``[I]``, bool: a word can go on after it; a word can go on into it."""

    @property
    def signal(self) -> Signal:
        """The distance at each response token whose next token is one, too."""
        return Signal("divergence", self.settings.to, by=NeighbourProducts())

    @property
    def needs(self) -> frozenset[Signal]:
        return frozenset({self.signal})

    def begin(self, model: ModelShape) -> None:
        """Read the words of the policy's tokenizer, unless the recipe names ``break_ids``."""
        if not self.settings.break_ids:
            self._words = words_of(model.path)

    def pairs(self, batch: Batch) -> Tensor:
        """Return the response tokens ``[B, T]`` that are of one span with the next token."""
        ids_BT = batch.token_ids_BT
        if self.settings.break_ids:
            inside_BT = ~torch.isin(ids_BT, torch.tensor(self.settings.break_ids, device=ids_BT.device))
            together_BT = joined(inside_BT, inside_BT)
        else:
            assert self._words is not None, "the learner calls `begin` before the first loss"
            together_BT = joined(*(looked_up(ids_BT, flags_I.to(ids_BT.device)) for flags_I in self._words))
        return together_BT & next_in_response(batch.response_BT)

    def loss(self, batch: Batch, signals: Signals) -> Tensor:
        distance_BT = masked(signals[self.signal], self.pairs(batch))
        return self.settings.coef * (token_mean(batch) * distance_BT).sum()

    def metrics(self, batch: Batch, signals: Signals) -> Mapping[str, Tensor]:
        """Return the ``distance`` per response token, and the share of response tokens that are ``pairs``."""
        pairs_BT = self.pairs(batch)
        return {
            "distance": (token_mean(batch) * masked(signals[self.signal], pairs_BT)).detach().sum(),
            "pairs": pairs_BT.sum() / batch.denominators.tokens,
        }
