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
from rlkl.signals import Divergence

_LOWEST = -1e30
"""Log-probability of a token that is left out. With -inf on both sides a gradient would be NaN."""


def jensen_shannon(policy_V: Tensor, teacher_V: Tensor, beta: float) -> Tensor:
    """Compute beta KL(teacher || m) + (1 - beta) KL(policy || m), m = beta teacher + (1 - beta) policy; never below 0.

    Both are log-probabilities over the last dimension; ``beta`` is above 0 and below 1. Divided by beta it tends to
    KL(teacher || policy) for beta to 0, and divided by 1 - beta to KL(policy || teacher) for beta to 1. It is bounded
    by the entropy of the weights beta and 1 - beta, at most log 2 (J. Lin, 1991; as a loss: GKD, arXiv 2306.13649).
    """
    policy_V, teacher_V = policy_V.clamp_min(_LOWEST), teacher_V.clamp_min(_LOWEST)
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


def gated_kl(policy_V: Tensor, teacher_V: Tensor, log_gate_V: Tensor, log_rest_V: Tensor, *, forward: bool) -> Tensor:
    """Compute the KL of both after each token has passed a gate: its rest goes into one bucket of all tokens.

    ``log_gate_V`` and ``log_rest_V``: logarithms of the gate, 0 to 1, and of 1 - gate. A gate is a channel that both
    distributions pass, so the KL is at most the whole one (data processing), equal to it with all gates open, and zero
    with all gates shut. ``forward``: KL(teacher || policy), else KL(policy || teacher).
    """

    def passed(x_V: Tensor) -> Tensor:
        x_V = x_V.clamp_min(_LOWEST)
        rest = (x_V + log_rest_V).clamp_min(_LOWEST).logsumexp(dim=-1, keepdim=True)
        return torch.cat([(x_V + log_gate_V).clamp_min(_LOWEST), rest], dim=-1)

    policy, teacher = passed(policy_V), passed(teacher_V)
    return kl.exact_kl(teacher, policy) if forward else kl.exact_kl(policy, teacher)


def nucleus(teacher_CV: Tensor, targets_C: Tensor, mass: float) -> Tensor:
    """Return which tokens ``[C, V]`` are kept: the fewest of the teacher's likeliest with ``mass``, and the target.

    The teacher's likeliest token is always kept.
    """
    sorted_CV, order_CV = teacher_CV.exp().sort(dim=-1, descending=True)
    before_CV = sorted_CV.cumsum(dim=-1) - sorted_CV
    kept_CV = torch.zeros_like(teacher_CV, dtype=torch.bool).scatter(-1, order_CV, before_CV < mass)
    return kept_CV.scatter(-1, targets_C.unsqueeze(-1), True)


@dataclass(frozen=True, slots=True)
class NucleusKl:
    """The KL over the teacher's nucleus, the token at hand, and a bucket of all others."""

    mass: float
    """Probability that the teacher gives to the kept tokens, at least."""
    forward: bool

    def __call__(self, policy_CV: Tensor, teacher_CV: Tensor, targets_C: Tensor, heads_CK: Tensor | None) -> Tensor:
        kept_CV = nucleus(teacher_CV, targets_C, self.mass)
        gate_CV, rest_CV = (torch.where(open_CV, 0.0, _LOWEST) for open_CV in (kept_CV, ~kept_CV))
        return gated_kl(policy_CV, teacher_CV, gate_CV, rest_CV, forward=self.forward)


@dataclass(frozen=True, slots=True)
class NucleusOutside:
    """The probability, without gradient, that the policy gives to the bucket of `NucleusKl`."""

    mass: float

    def __call__(self, policy_CV: Tensor, teacher_CV: Tensor, targets_C: Tensor, heads_CK: Tensor | None) -> Tensor:
        kept_CV = nucleus(teacher_CV, targets_C, self.mass)
        return torch.where(kept_CV, 0.0, policy_CV.detach().exp()).sum(dim=-1)


def chunked_divergences(
    hidden: tuple[Tensor, Tensor],
    heads: tuple[Head, Head],
    tokens: tuple[Tensor, Tensor | None],
    wanted: Sequence[Divergence],
    *,
    temperature: float,
    chunk_tokens: int,
) -> list[Tensor]:
    """Compute each wanted divergence ``[N]`` of policy and teacher at each token, with gradient to the policy.

    ``hidden`` and ``heads`` (those of the language models) are the policy's and the teacher's, in this order.
    ``tokens``: the target ids ``[N]``, and the output ``[N, K]`` of the rule's heads or None; gradient flows into it.
    A chunk holds the logits of two models, so it has half of ``chunk_tokens``; the backward pass computes them again.
    """
    score = partial(_score_chunk, heads, tuple(wanted), temperature)
    size = max(chunk_tokens // 2, 1)
    targets, outputs = tokens
    count = len(targets)
    chunks = []
    for start in range(0, max(count, 1), size):
        rows = slice(start, min(start + size, count))
        part = (targets[rows], None if outputs is None else outputs[rows])
        parts = (hidden[0][rows], hidden[1][rows].detach(), part)
        chunks.append(checkpoint(score, *parts, use_reentrant=False) if torch.is_grad_enabled() else score(*parts))
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
