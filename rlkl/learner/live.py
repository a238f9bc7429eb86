"""Compute the live signals of a micro-batch: those of the current weights, with gradient. Shapes as in `rlkl.batch`."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from rlkl.batch import Batch
from rlkl.functional.divergences import chunked_divergences
from rlkl.functional.logprobs import (
    TokenScores,
    WantedScores,
    chunked_logprobs_and_entropy,
    chunked_scores_against_reference,
)
from rlkl.learner.signals import CUSTOM, Models, SignalSettings, heads_output, hidden_states, spread, view_logprobs
from rlkl.signals import CLEAN, Signal, Signals, VocabularyMask
from rlkl.updates.base import PolicyUpdate


@dataclass(frozen=True, slots=True, kw_only=True)
class Live:
    """The signals of one forward pass."""

    signals: Signals
    """The signals that the rule needs, with gradient."""
    logprobs_BT: Tensor
    """The policy's log-probs, without gradient."""
    entropy_BT: Tensor
    """The policy's entropies, without gradient; zero if nobody asked for them."""


def live_signals(
    models: Models, batch: Batch, settings: SignalSettings, update: PolicyUpdate, *, start: bool = False
) -> Live:
    """Compute the live signals that a rule needs, for one micro-batch, with gradient.

    ``start``: this is the first pass of the step, so that its log-probs are also those of the step's start.
    """
    needs = {signal for signal in update.needs if signal.is_live}
    hidden_BTH = hidden_states(models.policy, batch)
    comparisons = _comparisons(needs, update.kl_top_k)
    entropy = start or Signal.POLICY_ENTROPY in needs
    values = dict(_from_logits(models, batch, settings, hidden_BTH, comparisons, entropy=entropy))
    for signal in sorted(needs, key=lambda signal: signal.name):
        if signal.quantity == "logprobs" and signal.view != CLEAN:
            values[signal] = view_logprobs(signal.view, models.policy, batch, settings)
        if signal.quantity == "answers":
            values[signal] = _answers(models, batch, settings, hidden_BTH, signal.tokens)
        if signal.quantity == "hidden":
            values[signal] = hidden_BTH
        if signal.quantity in CUSTOM:
            values[signal] = CUSTOM[signal.quantity](models, batch, settings)
    if models.heads is not None:
        values[Signal.HEADS] = heads_output(models, batch, hidden_BTH)
    values |= _divergences(models, batch, settings, needs, (hidden_BTH, values.get(Signal.HEADS)))
    logprobs_BT, entropy_BT = (values[s].detach() for s in (Signal.POLICY_LOGPROBS, Signal.POLICY_ENTROPY))
    if start:
        values[Signal.PROXIMAL_LOGPROBS] = logprobs_BT
        needs |= update.needs & {Signal.PROXIMAL_LOGPROBS}
    wanted = {signal: x_BT for signal, x_BT in values.items() if signal in needs}
    return Live(signals=Signals(wanted, update.rule), logprobs_BT=logprobs_BT, entropy_BT=entropy_BT)


def _answers(
    models: Models, batch: Batch, settings: SignalSettings, hidden_BTH: Tensor, tokens: tuple[int, ...]
) -> Tensor:
    """Compute log-probs ``[B, T, K]`` of K tokens among each other, at response tokens that are one of them."""
    ids_K = torch.tensor(tokens, device=batch.token_ids_BT.device)
    at_BT = batch.response_BT[:, 1:] & torch.isin(batch.token_ids_BT[:, 1:], ids_K)
    logits_NK = models.policy.head(hidden_BTH[:, :-1][at_BT])[:, ids_K].float() / settings.temperature
    return torch.stack([spread(x_N, at_BT) for x_N in logits_NK.log_softmax(dim=1).unbind(dim=1)], dim=-1)


def _divergences(
    models: Models,
    batch: Batch,
    settings: SignalSettings,
    needs: Collection[Signal],
    policy: tuple[Tensor, Tensor | None],
) -> dict[Signal, Tensor]:
    """Compute the signals of the quantity divergence from the policy's hidden states and the output of the heads."""
    (hidden_BTH, heads_BTK), at_BT, found = policy, batch.response_BT[:, 1:], {}
    outputs_NK = None if heads_BTK is None else heads_BTK[:, 1:][at_BT]
    for name in sorted({signal.model for signal in needs if signal.by is not None}):
        signals = sorted((one for one in needs if one.by and one.model == name), key=lambda one: one.name)
        with torch.no_grad():
            frozen_BTH = hidden_states(models.frozen[name], batch)
        numbers = chunked_divergences(
            (hidden_BTH[:, :-1][at_BT], frozen_BTH[:, :-1][at_BT]),
            (models.policy.output_head, models.frozen[name].output_head),
            (batch.token_ids_BT[:, 1:][at_BT], outputs_NK),
            [one.by for one in signals if one.by],
            temperature=settings.temperature,
            chunk_tokens=settings.chunk_tokens,
        )
        found |= {signal: spread(x_N, at_BT) for signal, x_N in zip(signals, numbers, strict=True)}
    return found


Support = tuple[int | None, VocabularyMask | None]
"""The tokens to compare on: the frozen model's likeliest, and the ids that count; None: all."""
Comparison = tuple[str, Support, list[Signal]]
"""A frozen model, the tokens to compare on, and the divergences between it and the policy: one pass over two models'
logits."""


def _comparisons(needs: Collection[Signal], top_k: int | None) -> list[Comparison]:
    groups: dict[tuple[str, Support], list[Signal]] = {}
    for signal in sorted((one for one in needs if one.is_comparison), key=lambda one: (one.model, one.quantity)):
        limit = (signal.top_k or top_k) if signal.is_kl else None
        groups.setdefault((signal.model, (limit, signal.vocabulary)), []).append(signal)
    return [(name, support, signals) for (name, support), signals in groups.items()]


def _from_logits(
    models: Models,
    batch: Batch,
    settings: SignalSettings,
    hidden_BTH: Tensor,
    comparisons: list[Comparison],
    *,
    entropy: bool,
) -> Iterator[tuple[Signal, Tensor]]:
    """Yield the policy's log-probs, its entropies, and the exact KLs."""
    predicted = batch.response_BT[:, 1:]
    hidden_NH, targets_N = hidden_BTH[:, :-1][predicted], batch.token_ids_BT[:, 1:][predicted]
    if not comparisons:
        logprobs_N, entropy_N = chunked_logprobs_and_entropy(
            hidden_NH,
            models.policy.output_head,
            targets_N,
            temperature=settings.temperature,
            chunk_tokens=settings.chunk_tokens,
            with_entropy=entropy,
        )
        yield Signal.POLICY_LOGPROBS, spread(logprobs_N, predicted)
        yield Signal.POLICY_ENTROPY, spread(entropy_N, predicted)
    for number, comparison in enumerate(comparisons):
        wanted = entropy and number == 0
        scores = _compared(models, batch, settings, (hidden_NH, targets_N), comparison, entropy=wanted)
        if number == 0:
            yield Signal.POLICY_LOGPROBS, spread(scores.logprobs_N, predicted)
            yield Signal.POLICY_ENTROPY, spread(scores.entropy_N, predicted)
        found = {"kl_to_policy": scores.kl_reference_to_policy_N, "kl_from_policy": scores.kl_policy_to_reference_N}
        found["cauchy_schwarz"] = scores.cauchy_schwarz_N
        for signal in comparison[2]:
            yield signal, spread(found[signal.quantity], predicted)


def _compared(
    models: Models,
    batch: Batch,
    settings: SignalSettings,
    policy: tuple[Tensor, Tensor],
    comparison: Comparison,
    *,
    entropy: bool,
) -> TokenScores:
    """Compare the policy, given as hidden states and targets of its response tokens, with a frozen model."""
    (hidden_NH, targets_N), (name, (top_k, vocabulary), signals) = policy, comparison
    with torch.no_grad():
        frozen_BTH = hidden_states(models.frozen[name], batch)
    quantities = {signal.quantity for signal in signals}
    return chunked_scores_against_reference(
        (hidden_NH, frozen_BTH[:, :-1][batch.response_BT[:, 1:]]),
        (models.policy.output_head, models.frozen[name].output_head),
        targets_N,
        WantedScores(
            entropy=entropy,
            kl_reference_to_policy="kl_to_policy" in quantities,
            kl_policy_to_reference="kl_from_policy" in quantities,
            cauchy_schwarz="cauchy_schwarz" in quantities,
            top_k=top_k,
            vocabulary=vocabulary,
        ),
        temperature=settings.temperature,
        chunk_tokens=settings.chunk_tokens,
    )
