"""Computing per-token signals, micro-batch by micro-batch, chunk by chunk. Shapes as in `rlkl.batch`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from rlkl.batch import DIFFERENTIABLE, NEEDS_REFERENCE, Batch, ImageInputs, Signal, Signals
from rlkl.data.packing import micro_batches
from rlkl.errors import MissingSignalError
from rlkl.functional.logprobs import (
    WantedScores,
    chunked_logprobs_and_entropy,
    chunked_scores_against_reference,
)
from rlkl.updates.base import HeadInput, Heads, PolicyUpdate

SUPPLIED = frozenset(Signal)
"""What this learner can compute. Of corrupted pictures only where there are pictures; set-up looks at the data."""


class Scorer(Protocol):
    """A model that signals are computed from."""

    def hidden(self, token_ids_BT: Tensor, images: ImageInputs | None = None) -> Tensor: ...

    def head(self, hidden_NH: Tensor) -> Tensor: ...

    def layers(self, token_ids_BT: Tensor, images: ImageInputs | None = None) -> Tensor: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Models:
    """What signals are computed from; a rule that needs none has no reference and no heads."""

    policy: Scorer
    reference: Scorer | None
    heads: Heads | None


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
    hidden_NH = model.hidden(batch.token_ids_BT, batch.images)[:, :-1][predicted]
    logprobs_N, entropy_N = chunked_logprobs_and_entropy(
        hidden_NH,
        model.head,
        batch.token_ids_BT[:, 1:][predicted],
        temperature=settings.temperature,
        chunk_tokens=settings.chunk_tokens,
        with_entropy=entropy,
    )
    return _spread(logprobs_N, predicted), _spread(entropy_N, predicted)


def corrupted_logprobs(model: Scorer, batch: Batch, settings: SignalSettings) -> Tensor:
    """Log-probabilities ``[B, T]`` of the response given the corrupted pictures, zero for sequences without any."""
    logprobs_BT = torch.zeros(batch.response_BT.shape, device=batch.response_BT.device)
    rows_B = batch.corrupted_B.nonzero()[:, 0]
    if not len(rows_B):
        return logprobs_BT
    seen = batch.rows(rows_B)
    seen_BT, _ = token_signals(model, replace(seen, images=seen.corrupted_images), settings, entropy=False)
    return logprobs_BT.index_put((rows_B,), pad_to(seen_BT, logprobs_BT.shape[1]))


@torch.no_grad()
def frozen_corrupted_logprobs(model: Scorer, batch: Batch, settings: SignalSettings, *, device: torch.device) -> Tensor:
    """The same for a whole batch, without gradient."""
    logprobs_BT = torch.zeros(batch.response_BT.shape)
    for rows_B in micro_batches(batch, settings.micro_batch_tokens):
        micro_BT = corrupted_logprobs(model, batch.rows(rows_B).to(device), settings).cpu()
        logprobs_BT[rows_B, : micro_BT.shape[1]] = micro_BT
    return logprobs_BT


def pad_to(x_BT: Tensor, length: int) -> Tensor:
    """Zeros on the right up to ``length``."""
    return F.pad(x_BT, (0, length - x_BT.shape[1]))


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


def differentiable_signals(models: Models, batch: Batch, settings: SignalSettings, update: PolicyUpdate) -> Signals:
    """The signals with gradient that a rule needs, for one micro-batch."""
    predicted = batch.response_BT[:, 1:]
    hidden_BTH = models.policy.hidden(batch.token_ids_BT, batch.images)
    hidden_NH, targets_N = hidden_BTH[:, :-1][predicted], batch.token_ids_BT[:, 1:][predicted]
    values: dict[Signal, Tensor] = {}
    if update.needs & NEEDS_REFERENCE & DIFFERENTIABLE:
        assert models.reference is not None
        with torch.no_grad():
            reference_NH = models.reference.hidden(batch.token_ids_BT, batch.images)[:, :-1][predicted]
        scores = chunked_scores_against_reference(
            (hidden_NH, reference_NH),
            (models.policy.head, models.reference.head),
            targets_N,
            WantedScores(
                entropy=Signal.POLICY_ENTROPY in update.needs,
                kl_reference_to_policy=Signal.KL_REFERENCE_TO_POLICY in update.needs,
                kl_policy_to_reference=Signal.KL_POLICY_TO_REFERENCE in update.needs,
                top_k=update.kl_top_k,
            ),
            temperature=settings.temperature,
            chunk_tokens=settings.chunk_tokens,
        )
        logprobs_N, entropy_N = scores.logprobs_N, scores.entropy_N
        values[Signal.KL_REFERENCE_TO_POLICY] = _spread(scores.kl_reference_to_policy_N, predicted)
        values[Signal.KL_POLICY_TO_REFERENCE] = _spread(scores.kl_policy_to_reference_N, predicted)
    else:
        logprobs_N, entropy_N = chunked_logprobs_and_entropy(
            hidden_NH,
            models.policy.head,
            targets_N,
            temperature=settings.temperature,
            chunk_tokens=settings.chunk_tokens,
            with_entropy=Signal.POLICY_ENTROPY in update.needs,
        )
    if Signal.CORRUPTED_LOGPROBS in update.recomputed:
        values[Signal.CORRUPTED_LOGPROBS] = corrupted_logprobs(models.policy, batch, settings)
    values[Signal.POLICY_LOGPROBS] = _spread(logprobs_N, predicted)
    values[Signal.POLICY_ENTROPY] = _spread(entropy_N, predicted)
    if models.heads is not None:
        values[Signal.HEADS] = _heads(models, batch, hidden_BTH)
    return Signals({name: x_BT for name, x_BT in values.items() if name in update.needs}, update.rule)


@torch.no_grad()
def frozen_heads(models: Models, batch: Batch, settings: SignalSettings, *, device: torch.device) -> Tensor:
    """What the heads say with the weights as they are, ``[B, T, K]``, for a whole batch."""
    parts: list[tuple[Tensor, Tensor]] = []
    for rows_B in micro_batches(batch, settings.micro_batch_tokens):
        micro = batch.rows(rows_B).to(device)
        reads_policy = models.heads is not None and models.heads.reads is HeadInput.POLICY_HIDDEN
        hidden_BTH = models.policy.hidden(micro.token_ids_BT, micro.images) if reads_policy else None
        parts.append((rows_B, _heads(models, micro, hidden_BTH).cpu()))
    heads_BTK = torch.zeros(*batch.response_BT.shape, parts[0][1].shape[-1])
    for rows_B, micro_BTK in parts:
        heads_BTK[rows_B, : micro_BTK.shape[1]] = micro_BTK
    return heads_BTK


def _heads(models: Models, batch: Batch, hidden_BTH: Tensor | None) -> Tensor:
    """The heads' output at the token that each place predicts, zero outside the response.

    ``hidden_BTH`` is the policy's, for heads that read it.
    """
    assert models.heads is not None
    if models.heads.reads is HeadInput.TOKENS:
        said_BTK = models.heads(batch.token_ids_BT)
    elif models.heads.reads is HeadInput.REFERENCE_LAYERS:
        assert models.reference is not None
        with torch.no_grad():
            layers_BTLH = models.reference.layers(batch.token_ids_BT, batch.images)
        said_BTK = F.pad(models.heads(layers_BTLH[:, :-1]), (0, 0, 1, 0))
    else:
        assert hidden_BTH is not None
        said_BTK = F.pad(models.heads(hidden_BTH[:, :-1]), (0, 0, 1, 0))
    return torch.where(batch.response_BT.unsqueeze(-1), said_BTK, 0.0)


def _spread(values_N: Tensor, mask_BT: Tensor) -> Tensor:
    """Values at the mask's places, zeros elsewhere, and a zero first column (position 0 predicts nothing)."""
    zeros_BT = torch.zeros(mask_BT.shape, dtype=values_N.dtype, device=values_N.device)
    return F.pad(zeros_BT.masked_scatter(mask_BT, values_N), (1, 0))
