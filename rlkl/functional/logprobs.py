"""Compute log-probabilities and entropies of tokens from hidden states, without the logits of a whole batch.

Shapes: N tokens (of any sequences), C tokens of one chunk, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from typing_extensions import TypeIs

from rlkl.functional import kl, vocabulary_mask
from rlkl.functional.linear_scores import TILE_IDS, LinearHead, TokenScores, linear_scores
from rlkl.quantities import VocabularyMask

Head = Callable[[Tensor], Tensor]
"""Hidden states ``[C, H]`` to logits ``[C, V]`` (a language-model head)."""


def chunked_logprobs_and_entropy(
    hidden_NH: Tensor,
    head: Head,
    targets_N: Tensor,
    *,
    temperature: float,
    chunk_tokens: int,
    with_entropy: bool,
) -> tuple[Tensor, Tensor]:
    """Compute log-probability and entropy of ``softmax(head(hidden) / temperature)`` at each target token.

    A `LinearHead` of a large vocabulary is scored by `linear_scores`. Otherwise logits exist for ``chunk_tokens``
    tokens at a time. The backward pass computes them again, chunk by chunk, so both passes need memory of
    O(chunk_tokens * V). Logits are cast to float32 before the softmax.

    Returns:
        ``logprobs_N`` and ``entropy_N`` in nats, float32, with gradient to ``hidden_NH`` and to the parameters
        of ``head``. Without ``with_entropy``, ``entropy_N`` is zero and has no gradient.
    """
    if _is_tiled(head):
        scores = linear_scores(
            (hidden_NH, head), targets_N, temperature=temperature, entropy=with_entropy, chunk_tokens=chunk_tokens
        )
        return scores.logprobs_N, scores.entropy_N
    score = partial(_score_chunk, head, temperature=temperature, with_entropy=with_entropy)
    logprobs, entropies = [], []
    for hidden_CH, targets_C in zip(hidden_NH.split(chunk_tokens), targets_N.split(chunk_tokens), strict=True):
        if torch.is_grad_enabled():
            logprobs_C, entropy_C = checkpoint(score, hidden_CH, targets_C, use_reentrant=False)
        else:
            logprobs_C, entropy_C = score(hidden_CH, targets_C)
        logprobs.append(logprobs_C)
        entropies.append(entropy_C)
    return torch.cat(logprobs), torch.cat(entropies)


def _is_tiled(head: Head) -> TypeIs[LinearHead]:
    """Return whether the scores are computed by tiles of the vocabulary: faster if it has more than one tile."""
    return isinstance(head, LinearHead) and head.vocabulary > TILE_IDS


def _score_chunk(
    head: Head, hidden_CH: Tensor, targets_C: Tensor, *, temperature: float, with_entropy: bool
) -> tuple[Tensor, Tensor]:
    all_logprobs_CV = F.log_softmax(head(hidden_CH).float() / temperature, dim=-1)
    logprobs_C = all_logprobs_CV.gather(-1, targets_C.unsqueeze(-1)).squeeze(-1)
    if not with_entropy:
        return logprobs_C, torch.zeros_like(logprobs_C)
    return logprobs_C, -(all_logprobs_CV.exp() * all_logprobs_CV).sum(dim=-1)


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedScores:
    """Quantities to compute beside log-probabilities; the others of `TokenScores` mean nothing."""

    entropy: bool = False
    kl_reference_to_policy: bool = False
    kl_policy_to_reference: bool = False
    cauchy_schwarz: bool = False
    top_k: int | None = None
    """KLs over the reference's ``top_k`` likeliest tokens and one bucket for all others; None: the whole vocabulary,
    which ``cauchy_schwarz`` always takes."""
    vocabulary: VocabularyMask | None = None
    """KLs over some token ids only; None: all."""

    @property
    def can_tile(self) -> bool:
        """Whether all of it can be computed tile by tile, without whole logits."""
        return self.top_k is None and self.vocabulary is None and not self.cauchy_schwarz


def chunked_scores_against_reference(
    hidden: tuple[Tensor, Tensor],
    heads: tuple[Head, Head],
    targets_N: Tensor,
    wanted: WantedScores,
    *,
    temperature: float,
    chunk_tokens: int,
) -> TokenScores:
    """Compute log-probs and entropy as `chunked_logprobs_and_entropy` does, and divergences of reference and policy.

    ``hidden`` and ``heads`` are those of the policy and of the reference, in this order; no gradient flows into the
    reference. A chunk holds the logits of two models, so it has half as many tokens. Peak memory then stays near that
    of log-probabilities alone (``benchmarks/exact_kl_memory.py``).
    """
    if _is_tiled(heads[0]) and _is_tiled(heads[1]) and wanted.can_tile:
        reference = (hidden[1].detach(), heads[1])
        return linear_scores(
            (hidden[0], heads[0]),
            targets_N,
            temperature=temperature,
            entropy=wanted.entropy,
            reference=reference,
            chunk_tokens=chunk_tokens,
        )
    score = partial(_score_chunk_against_reference, heads, wanted, temperature)
    size = max(chunk_tokens // 2, 1)
    chunks = []
    parts = zip(hidden[0].split(size), hidden[1].detach().split(size), targets_N.split(size), strict=True)
    for hidden_CH, reference_CH, targets_C in parts:
        if torch.is_grad_enabled():
            chunks.append(checkpoint(score, hidden_CH, reference_CH, targets_C, use_reentrant=False))
        else:
            chunks.append(score(hidden_CH, reference_CH, targets_C))
    return TokenScores(*(torch.cat(column) for column in zip(*chunks, strict=True)))


def _score_chunk_against_reference(
    heads: tuple[Head, Head],
    wanted: WantedScores,
    temperature: float,
    hidden_CH: Tensor,
    reference_CH: Tensor,
    targets_C: Tensor,
) -> TokenScores:
    policy_CV = F.log_softmax(heads[0](hidden_CH).float() / temperature, dim=-1)
    with torch.no_grad():
        reference_CV = F.log_softmax(heads[1](reference_CH).float() / temperature, dim=-1)
    logprobs_C = policy_CV.gather(-1, targets_C.unsqueeze(-1)).squeeze(-1)
    zeros_C = torch.zeros_like(logprobs_C)
    entropy_C = -(policy_CV.exp() * policy_CV).sum(dim=-1) if wanted.entropy else zeros_C
    divergence_C = kl.cauchy_schwarz(policy_CV, reference_CV) if wanted.cauchy_schwarz else zeros_C
    if wanted.vocabulary is not None:
        policy_CV, reference_CV = (
            vocabulary_mask.counted(x_CV, wanted.vocabulary) for x_CV in (policy_CV, reference_CV)
        )
    if wanted.top_k is not None:
        policy_CV, reference_CV = kl.top_k_and_tail(policy_CV, reference_CV, wanted.top_k)
    divergence = vocabulary_mask.divergence(wanted.vocabulary)
    return TokenScores(
        logprobs_C,
        entropy_C,
        divergence(reference_CV, policy_CV) if wanted.kl_reference_to_policy else zeros_C,
        divergence(policy_CV, reference_CV) if wanted.kl_policy_to_reference else zeros_C,
        divergence_C,
    )
