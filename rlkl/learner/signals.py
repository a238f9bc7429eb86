"""Computing per-token signals, micro-batch by micro-batch, chunk by chunk. Shapes as in `rlkl.batch`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from rlkl.batch import DIFFERENTIABLE, Batch, Signal, Signals
from rlkl.data.packing import micro_batches
from rlkl.errors import MissingSignalError
from rlkl.functional.logprobs import chunked_logprobs_and_entropy
from rlkl.updates.base import PolicyUpdate

SUPPLIED = DIFFERENTIABLE | {Signal.PROXIMAL_LOGPROBS, Signal.REFERENCE_LOGPROBS}
"""What this learner can compute."""


class Scorer(Protocol):
    """A model that signals are computed from."""

    def hidden(self, token_ids_BT: Tensor) -> Tensor: ...

    def head(self, hidden_NH: Tensor) -> Tensor: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SignalSettings:
    """How signals are computed, whatever the rule."""

    temperature: float
    """Logits are divided by it, as the sampler did."""
    chunk_tokens: int
    """Tokens whose full-vocabulary logits exist at one time."""
    micro_batch_tokens: int


def check_supplied(update: PolicyUpdate) -> None:
    """Raise `MissingSignalError` at set-up when the rule needs a signal that this learner cannot compute."""
    for signal in sorted(update.needs - SUPPLIED, key=lambda signal: signal.name):
        raise MissingSignalError(
            update.rule, signal.name, f"The learner supplies {', '.join(sorted(s.name for s in SUPPLIED))}."
        )


def token_signals(model: Scorer, batch: Batch, settings: SignalSettings, *, entropy: bool) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies ``[B, T]`` of one micro-batch's response tokens, zero elsewhere."""
    predicted = batch.response_BT[:, 1:]
    hidden_NH = model.hidden(batch.token_ids_BT)[:, :-1][predicted]
    logprobs_N, entropy_N = chunked_logprobs_and_entropy(
        hidden_NH,
        model.head,
        batch.token_ids_BT[:, 1:][predicted],
        temperature=settings.temperature,
        chunk_tokens=settings.chunk_tokens,
        with_entropy=entropy,
    )
    return _spread(logprobs_N, predicted), _spread(entropy_N, predicted)


@torch.no_grad()
def frozen_token_signals(
    model: Scorer, batch: Batch, settings: SignalSettings, *, device: torch.device, entropy: bool
) -> tuple[Tensor, Tensor]:
    """The same for a whole batch, without gradient; the result stands where the batch stands."""
    logprobs_BT = torch.zeros(batch.response_BT.shape)
    entropy_BT = torch.zeros(batch.response_BT.shape)
    for rows_B in micro_batches(batch, settings.micro_batch_tokens):
        micro = batch.rows(rows_B).to(device)
        length = micro.token_ids_BT.shape[1]
        micro_logprobs_BT, micro_entropy_BT = token_signals(model, micro, settings, entropy=entropy)
        logprobs_BT[rows_B, :length] = micro_logprobs_BT.cpu()
        entropy_BT[rows_B, :length] = micro_entropy_BT.cpu()
    return logprobs_BT, entropy_BT


def differentiable_signals(
    model: Scorer, batch: Batch, settings: SignalSettings, needs: frozenset[Signal], rule: str
) -> Signals:
    """The signals with gradient that a rule needs, for one micro-batch."""
    with_entropy = Signal.POLICY_ENTROPY in needs
    logprobs_BT, entropy_BT = token_signals(model, batch, settings, entropy=with_entropy)
    values = {Signal.POLICY_LOGPROBS: logprobs_BT}
    if with_entropy:
        values[Signal.POLICY_ENTROPY] = entropy_BT
    return Signals(values, rule)


def _spread(values_N: Tensor, mask_BT: Tensor) -> Tensor:
    """Values at the mask's places, zeros elsewhere, and a zero first column (position 0 predicts nothing)."""
    zeros_BT = torch.zeros(mask_BT.shape, dtype=values_N.dtype, device=values_N.device)
    return F.pad(zeros_BT.masked_scatter(mask_BT, values_N), (1, 0))
