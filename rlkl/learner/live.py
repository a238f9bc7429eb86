"""Compute the live signals of a micro-batch: those of the current weights, with gradient. Shapes as in `rlkl.batch`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from rlkl.batch import Batch
from rlkl.functional.logprobs import chunked_logprobs_and_entropy
from rlkl.learner.compared import Compared, Comparison, comparisons
from rlkl.learner.signals import CUSTOM, Models, SignalSettings, heads_output, hidden_states, spread, view_logprobs
from rlkl.signals import CLEAN, Signal, Signals
from rlkl.updates.base import HeadInput, PolicyUpdate


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
    compared = Compared(models=models, batch=batch, settings=settings, hidden_BTH=hidden_BTH)
    entropy = start or Signal.POLICY_ENTROPY in needs
    values = dict(_from_logits(compared, comparisons(needs, update.kl_top_k), entropy=entropy))
    for signal in sorted(needs, key=lambda signal: signal.name):
        if signal.quantity == "logprobs" and signal.view != CLEAN:
            values[signal] = view_logprobs(signal.view, models.policy, batch, settings)
        if signal.quantity == "answers":
            values[signal] = compared.answers(signal.tokens)
        if signal.quantity == "hidden":
            values[signal] = hidden_BTH
        if signal.quantity in CUSTOM:
            values[signal] = CUSTOM[signal.quantity](models, batch, settings)
    if models.heads is not None:
        likeliest = models.heads.reads is HeadInput.LIKELIEST
        values[Signal.HEADS] = heads_output(models, batch, compared.likeliest() if likeliest else hidden_BTH)
    values |= compared.divergences(needs, values.get(Signal.HEADS))
    logprobs_BT, entropy_BT = (values[s].detach() for s in (Signal.POLICY_LOGPROBS, Signal.POLICY_ENTROPY))
    if start:
        values[Signal.PROXIMAL_LOGPROBS] = logprobs_BT
        needs |= update.needs & {Signal.PROXIMAL_LOGPROBS}
    wanted = {signal: x_BT for signal, x_BT in values.items() if signal in needs}
    return Live(signals=Signals(wanted, update.rule), logprobs_BT=logprobs_BT, entropy_BT=entropy_BT)


def _from_logits(
    compared: Compared, comparisons: list[Comparison], *, entropy: bool
) -> Iterator[tuple[Signal, Tensor]]:
    """Yield the policy's log-probs, its entropies, and the exact KLs."""
    predicted, settings = compared.predicted, compared.settings
    if not comparisons:
        logprobs_N, entropy_N = chunked_logprobs_and_entropy(
            compared.hidden_NH,
            compared.models.policy.output_head,
            compared.targets_N,
            temperature=settings.temperature,
            chunk_tokens=settings.chunk_tokens,
            with_entropy=entropy,
        )
        yield Signal.POLICY_LOGPROBS, spread(logprobs_N, predicted)
        yield Signal.POLICY_ENTROPY, spread(entropy_N, predicted)
    for number, comparison in enumerate(comparisons):
        scores = compared.scores(comparison, entropy=entropy and number == 0)
        if number == 0:
            yield Signal.POLICY_LOGPROBS, spread(scores.logprobs_N, predicted)
            yield Signal.POLICY_ENTROPY, spread(scores.entropy_N, predicted)
        found = {"kl_to_policy": scores.kl_reference_to_policy_N, "kl_from_policy": scores.kl_policy_to_reference_N}
        found["cauchy_schwarz"] = scores.cauchy_schwarz_N
        for signal in comparison[2]:
            yield signal, spread(found[signal.quantity], predicted)
