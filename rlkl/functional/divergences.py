"""Divergences of policy and teacher beyond the exact KL, each a small hashable object that a signal carries (``by``).

Shapes: C tokens of a chunk, N tokens, H hidden size, V vocabulary, K outputs of a rule's heads. All in nats, float32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from rlkl.functional import kl
from rlkl.functional.logprobs import Head
from rlkl.functional.windows import LOWEST
from rlkl.quantities import Divergence


def jensen_shannon(policy_V: Tensor, teacher_V: Tensor, beta: float) -> Tensor:
    """Compute beta KL(teacher || m) + (1 - beta) KL(policy || m), m = beta teacher + (1 - beta) policy; never below 0.

    Both are log-probabilities over the last dimension; ``beta`` is above 0 and below 1. Divided by beta it tends to
    KL(teacher || policy) for beta to 0, and divided by 1 - beta to KL(policy || teacher) for beta to 1. It is bounded
    by the entropy of the weights beta and 1 - beta, at most log 2 (J. Lin, 1991; as a loss: GKD, arXiv 2306.13649).
    """
    policy_V, teacher_V = policy_V.clamp_min(LOWEST), teacher_V.clamp_min(LOWEST)
    mixture_V = torch.logaddexp(teacher_V + math.log(beta), policy_V + math.log1p(-beta))
    return beta * kl.exact_kl(teacher_V, mixture_V) + (1 - beta) * kl.exact_kl(policy_V, mixture_V)


@dataclass(frozen=True, slots=True)
class JensenShannon:
    """The generalised Jensen-Shannon divergence; with ``top_k`` of the teacher's likeliest tokens and a tail.

    The tail makes it a lower bound that does not fall when ``top_k`` rises.
    """

    beta: float
    top_k: int | None = None

    def __call__(self, policy_CV: Tensor, teacher_CV: Tensor, targets_C: Tensor, heads_CK: Tensor | None) -> Tensor:
        if self.top_k is not None:
            policy_CV, teacher_CV = kl.top_k_and_tail(policy_CV, teacher_CV, self.top_k)
        return jensen_shannon(policy_CV, teacher_CV, self.beta)


def chunked_divergences(
    hidden: tuple[Tensor, Tensor],
    heads: tuple[Head, Head],
    tokens: tuple[Tensor, Tensor | None],
    wanted: Sequence[Divergence],
    *,
    temperature: float,
    chunk_tokens: int,
) -> list[Tensor]:
    """Compute each wanted divergence ``[N]`` or ``[N, D]`` of policy and teacher, with gradient to the policy.

    ``hidden`` and ``heads`` (those of the language models) are the policy's and the teacher's, in this order.
    ``tokens``: the target ids ``[N]``, and the output ``[N, K]`` of the rule's heads or None; gradient flows into it.
    A chunk holds the logits of two models, so it has half of ``chunk_tokens``; the backward pass computes them again.
    If a divergence reads the next token, a chunk has one token more.
    """
    score = partial(_score_chunk, heads, tuple(wanted), temperature)
    size = max(chunk_tokens // 2, 1)
    targets, outputs = tokens
    count, ahead = len(targets), int(any(getattr(one, "reads_next", False) for one in wanted))
    chunks = []
    for start in range(0, max(count, 1), size):
        rows = slice(start, min(start + size + ahead, count))
        part = (targets[rows], None if outputs is None else outputs[rows])
        parts = (hidden[0][rows], hidden[1][rows].detach(), part)
        found = checkpoint(score, *parts, use_reentrant=False) if torch.is_grad_enabled() else score(*parts)
        chunks.append([x_C[:size] for x_C in found])
    return [torch.cat(column) for column in zip(*chunks, strict=True)]


def _score_chunk(
    heads: tuple[Head, Head],
    wanted: Sequence[Divergence],
    temperature: float,
    hidden_CH: Tensor,
    teacher_CH: Tensor,
    tokens: tuple[Tensor, Tensor | None],
) -> tuple[Tensor, ...]:
    policy_CV = F.log_softmax(heads[0](hidden_CH).float() / temperature, dim=-1)
    with torch.no_grad():
        teacher_CV = F.log_softmax(heads[1](teacher_CH).float() / temperature, dim=-1)
    return tuple(divergence(policy_CV, teacher_CV, *tokens) for divergence in wanted)
