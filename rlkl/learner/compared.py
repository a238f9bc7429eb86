"""Signals of one micro-batch that need the policy's logits once more, most of them beside those of a frozen model.

Shapes as in `rlkl.batch`; N response tokens, D numbers of a divergence, K likeliest tokens.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from rlkl.batch import Batch
from rlkl.functional.divergences import chunked_divergences
from rlkl.functional.logprobs import TokenScores, WantedScores, chunked_scores_against_reference
from rlkl.functional.neighbours import next_in_response
from rlkl.functional.reduce import masked
from rlkl.functional.windows import chunked_likeliest
from rlkl.learner.signals import Models, SignalSettings, hidden_states, spread
from rlkl.quantities import VocabularyMask
from rlkl.signals import Signal

Support = tuple[int | None, VocabularyMask | None]
"""The tokens to compare on: the frozen model's likeliest, and the ids that count; None: all."""
Comparison = tuple[str, Support, list[Signal]]
"""A frozen model, the tokens to compare on, and the divergences between it and the policy: one pass over two models'
logits."""


def comparisons(needs: Collection[Signal], top_k: int | None) -> list[Comparison]:
    """Group the KLs and Cauchy-Schwarz divergences that can be computed together; ``top_k`` is the rule's."""
    groups: dict[tuple[str, Support], list[Signal]] = {}
    for signal in sorted((one for one in needs if one.is_comparison), key=lambda one: (one.model, one.quantity)):
        limit = (signal.top_k or top_k) if signal.is_kl else None
        groups.setdefault((signal.model, (limit, signal.vocabulary)), []).append(signal)
    return [(name, support, signals) for (name, support), signals in groups.items()]


@dataclass(frozen=True, kw_only=True)
class Compared:
    """The policy's hidden states of one micro-batch, and those of frozen models, each computed once when needed."""

    models: Models
    batch: Batch
    settings: SignalSettings
    hidden_BTH: Tensor
    """The policy's, with gradient."""
    _frozen: dict[str, Tensor] = field(default_factory=dict)

    @cached_property
    def predicted(self) -> Tensor:
        """The places ``[B, T - 1]`` whose next token is of the response."""
        return self.batch.response_BT[:, 1:]

    @cached_property
    def targets_N(self) -> Tensor:
        """The response tokens."""
        return self.batch.token_ids_BT[:, 1:][self.predicted]

    @cached_property
    def hidden_NH(self) -> Tensor:
        """The policy's states that predict the response tokens."""
        return self.hidden_BTH[:, :-1][self.predicted]

    @torch.no_grad()
    def frozen_NH(self, name: str) -> Tensor:
        """Return a frozen model's states that predict the response tokens."""
        if name not in self._frozen:
            self._frozen[name] = hidden_states(self.models.frozen[name], self.batch)[:, :-1][self.predicted]
        return self._frozen[name]

    def scores(self, comparison: Comparison, *, entropy: bool) -> TokenScores:
        """Compute the policy's log-probs, its entropies, and what a comparison wants."""
        name, (top_k, vocabulary), signals = comparison
        quantities = {signal.quantity for signal in signals}
        return chunked_scores_against_reference(
            (self.hidden_NH, self.frozen_NH(name)),
            (self.models.policy.output_head, self.models.frozen[name].output_head),
            self.targets_N,
            WantedScores(
                entropy=entropy,
                kl_reference_to_policy="kl_to_policy" in quantities,
                kl_policy_to_reference="kl_from_policy" in quantities,
                cauchy_schwarz="cauchy_schwarz" in quantities,
                top_k=top_k,
                vocabulary=vocabulary,
            ),
            temperature=self.settings.temperature,
            chunk_tokens=self.settings.chunk_tokens,
        )

    def divergences(self, needs: Collection[Signal], heads_BTK: Tensor | None) -> dict[Signal, Tensor]:
        """Compute the signals of the quantity divergence; ``heads_BTK`` is the output of the rule's heads."""
        found: dict[Signal, Tensor] = {}
        outputs_NK = None if heads_BTK is None else heads_BTK[:, 1:][self.predicted]
        for name in sorted({signal.model for signal in needs if signal.by is not None}):
            signals = sorted((one for one in needs if one.by and one.model == name), key=lambda one: one.name)
            numbers = chunked_divergences(
                (self.hidden_NH, self.frozen_NH(name)),
                (self.models.policy.output_head, self.models.frozen[name].output_head),
                (self.targets_N, outputs_NK),
                [one.by for one in signals if one.by],
                temperature=self.settings.temperature,
                chunk_tokens=self.settings.chunk_tokens,
            )
            found |= {signal: self._spread(signal, x) for signal, x in zip(signals, numbers, strict=True)}
        return found

    def _spread(self, signal: Signal, values: Tensor) -> Tensor:
        """Return the numbers ``[N]`` or ``[N, D]`` of a divergence at their tokens."""
        columns = values.unbind(dim=1) if values.ndim == 2 else [values]
        found = [spread(x_N, self.predicted) for x_N in columns]
        if getattr(signal.by, "reads_next", False):
            found = [masked(x_BT, next_in_response(self.batch.response_BT)) for x_BT in found]
        return torch.stack(found, dim=-1) if values.ndim == 2 else found[0]

    def likeliest(self) -> Tensor:
        """Compute the input of heads that read `HeadInput.LIKELIEST`, ``[B, T, 2 K]``, at the places that predict."""
        heads = self.models.heads
        assert heads is not None
        pairs = (
            (self.frozen_NH(heads.beside), self.models.frozen[heads.beside]),
            (self.hidden_NH.detach(), self.models.policy),
        )
        top_NK = [
            chunked_likeliest(
                hidden_NH,
                model.output_head,
                heads.likeliest,
                temperature=self.settings.temperature,
                chunk_tokens=self.settings.chunk_tokens,
            )
            for hidden_NH, model in pairs
        ]
        columns = torch.cat(top_NK, dim=1).unbind(dim=1)
        # `spread` puts a number at the token itself; here it belongs to the place before.
        return F.pad(torch.stack([spread(x_N, self.predicted) for x_N in columns], dim=-1)[:, 1:], (0, 0, 0, 1))

    def answers(self, tokens: tuple[int, ...]) -> Tensor:
        """Compute log-probs ``[B, T, K]`` of K tokens among each other, at response tokens that are one of them."""
        ids_BT = self.batch.token_ids_BT[:, 1:]
        ids_K = torch.tensor(tokens, device=ids_BT.device)
        at_BT = self.predicted & torch.isin(ids_BT, ids_K)
        logits_NK = self.models.policy.head(self.hidden_BTH[:, :-1][at_BT])[:, ids_K].float()
        logprobs_NK = (logits_NK / self.settings.temperature).log_softmax(dim=1)
        return torch.stack([spread(x_N, at_BT) for x_N in logprobs_NK.unbind(dim=1)], dim=-1)
