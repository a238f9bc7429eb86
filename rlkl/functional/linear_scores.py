"""Log-probs, entropies and exact KLs of a linear head, without the logits of all tokens or of the whole vocabulary.

The forward pass goes over tiles of the vocabulary and keeps a few numbers a token: the logsumexp and what the gradient
needs of the entropy and the KL. The backward pass computes the logits of each tile once more and writes the gradient of
hidden states and weights itself, so nothing of the size of a logit is kept between the two passes.

Shapes: N tokens, C tokens of a chunk, H hidden size, V vocabulary, K ids of a tile. All outputs are float32, in nats.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

CHUNK_TOKENS = 1024
TILE_IDS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearHead:
    """An output head that is one matrix: logits = cap(scale * (hidden @ weight.T + bias)), cap(x) = c tanh(x / c)."""

    weight_VH: Tensor
    bias_V: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    def __call__(self, hidden_NH: Tensor) -> Tensor:
        """Return the logits ``[N, V]``."""
        logits_NV = torch.nn.functional.linear(hidden_NH, self.weight_VH, self.bias_V)
        if self.scale != 1.0:
            logits_NV = logits_NV * self.scale
        return logits_NV if self.softcap is None else torch.tanh(logits_NV / self.softcap) * self.softcap

    @property
    def vocabulary(self) -> int:
        """The number of token ids."""
        return self.weight_VH.shape[0]

    def tile(self, hidden_CH: Tensor, start: int) -> Tensor:
        """Return float32 logits ``[C, K]`` of the ids from ``start`` on."""
        weight_KH = self.weight_VH[start : start + TILE_IDS]
        logits_CK = (hidden_CH @ weight_KH.T).float()
        if self.bias_V is not None:
            logits_CK += self.bias_V[start : start + TILE_IDS].float()
        if self.scale != 1.0:
            logits_CK *= self.scale
        return logits_CK if self.softcap is None else logits_CK.div_(self.softcap).tanh_().mul_(self.softcap)

    def tile_gradient(self, logits_CK: Tensor, gradient_CK: Tensor) -> Tensor:
        """Turn the gradient of capped and scaled logits into that of ``hidden @ weight.T``, in place."""
        if self.softcap is not None:
            gradient_CK *= 1.0 - (logits_CK / self.softcap).square_()
        return gradient_CK if self.scale == 1.0 else gradient_CK.mul_(self.scale)


class TokenScores(NamedTuple):
    """Per token, float32, in nats: log-probability, entropy, and exact KLs over the vocabulary."""

    logprobs_N: Tensor
    entropy_N: Tensor
    kl_reference_to_policy_N: Tensor
    kl_policy_to_reference_N: Tensor


def linear_scores(
    hidden_NH: Tensor,
    head: LinearHead,
    targets_N: Tensor,
    *,
    temperature: float,
    entropy: bool,
    reference: tuple[Tensor, LinearHead] | None = None,
) -> TokenScores:
    """Compute scores of ``softmax(head(hidden) / temperature)``, with gradient to hidden states, weight and bias.

    ``reference``: the frozen model's hidden states and head, to compare with; without it both KLs are zero. Without
    ``entropy`` the entropies are zero.
    """
    plan = _Plan(head=head, targets_N=targets_N, temperature=temperature, entropy=entropy, reference=reference)
    return TokenScores(*_Scores.apply(hidden_NH, head.weight_VH, head.bias_V, plan))  # pyright: ignore


@dataclass(slots=True, kw_only=True)
class _Plan:
    """The constants of one call, and the numbers that the forward pass keeps."""

    head: LinearHead
    targets_N: Tensor
    temperature: float
    entropy: bool
    reference: tuple[Tensor, LinearHead] | None
    lse_N: Tensor = field(init=False)
    reference_lse_N: Tensor | None = None

    def logits(self, hidden_CH: Tensor, rows: slice, start: int) -> tuple[Tensor, Tensor | None]:
        """Return the tile's logits over temperature, of the policy and of the reference."""
        policy_CK = self.head.tile(hidden_CH, start)
        if self.temperature != 1.0:
            policy_CK = policy_CK / self.temperature
        if self.reference is None:
            return policy_CK, None
        hidden, head = self.reference
        return policy_CK, head.tile(hidden[rows], start).div_(self.temperature)


class _Online:
    """A logsumexp, and a mean under its softmax, that grow tile by tile."""

    def __init__(self, count: int, device: torch.device) -> None:
        self.max_C = torch.full((count,), -torch.inf, device=device)
        self.sum_C = torch.zeros(count, device=device)
        self.weighted_C = torch.zeros(count, device=device)

    def add(self, logits_CK: Tensor, values_CK: Tensor | None) -> None:
        """Take in a tile; ``values_CK`` are averaged, each with its id's probability."""
        max_C = torch.maximum(self.max_C, logits_CK.amax(dim=1))
        factor_C = torch.exp(self.max_C - max_C)
        weights_CK = (logits_CK - max_C.unsqueeze(1)).exp_()
        self.sum_C = self.sum_C * factor_C + weights_CK.sum(dim=1)
        if values_CK is not None:
            self.weighted_C = self.weighted_C * factor_C + weights_CK.mul_(values_CK).sum(dim=1)
        self.max_C = max_C

    @property
    def lse_C(self) -> Tensor:
        return self.max_C + self.sum_C.log()

    @property
    def mean_C(self) -> Tensor:
        return self.weighted_C / self.sum_C


class _Scores(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, plan: _Plan
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        parts = [_forward_chunk(hidden_NH[rows], rows, plan) for rows in _chunks(len(hidden_NH))]
        logprobs_N, entropy_N, to_policy_N, to_reference_N, lse_N, reference_lse_N = (
            torch.cat(column) for column in zip(*parts, strict=True)
        )
        plan.lse_N, plan.reference_lse_N = lse_N, reference_lse_N
        ctx.plan = plan
        ctx.save_for_backward(hidden_NH, weight_VH, entropy_N, to_reference_N)
        # Rounding may push a small KL below zero. Its gradient does not depend on that.
        return logprobs_N, entropy_N, to_policy_N.clamp_min(0.0), to_reference_N.clamp_min(0.0)

    @staticmethod
    def backward(ctx: Any, *gradients_N: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        hidden_NH, weight_VH, entropy_N, to_reference_N = ctx.saved_tensors
        plan: _Plan = ctx.plan
        to_hidden, to_weight, to_bias = ctx.needs_input_grad[:3]
        hidden_gradient = torch.zeros_like(hidden_NH, dtype=torch.float32) if to_hidden else None
        weight_gradient = torch.empty_like(weight_VH) if to_weight else None
        bias_gradient = torch.zeros(plan.head.vocabulary, device=hidden_NH.device) if to_bias else None
        for start in range(0, plan.head.vocabulary, TILE_IDS):
            tile_KH: Tensor | None = None
            ids = slice(start, start + TILE_IDS)
            for rows in _chunks(len(hidden_NH)):
                saved = (entropy_N[rows], to_reference_N[rows])
                logits_gradient = _tile_gradient(
                    hidden_NH[rows], rows, start, plan, saved, [g[rows] for g in gradients_N]
                )
                low_CK = logits_gradient.to(weight_VH.dtype)
                if hidden_gradient is not None:
                    hidden_gradient[rows] += low_CK @ weight_VH[ids]
                if to_weight:
                    part_KH = (low_CK.T @ hidden_NH[rows]).float()
                    tile_KH = part_KH if tile_KH is None else tile_KH.add_(part_KH)
                if bias_gradient is not None:
                    bias_gradient[ids] += logits_gradient.sum(dim=0)
            if weight_gradient is not None:
                weight_gradient[ids] = 0.0 if tile_KH is None else tile_KH
        return (
            None if hidden_gradient is None else hidden_gradient.to(hidden_NH.dtype),
            weight_gradient,
            None if bias_gradient is None else bias_gradient.to(plan.head.bias_V.dtype),  # pyright: ignore
            None,
        )


def _chunks(count: int) -> Iterator[slice]:
    yield from (slice(start, min(start + CHUNK_TOKENS, count)) for start in range(0, count, CHUNK_TOKENS))


def _forward_chunk(hidden_CH: Tensor, rows: slice, plan: _Plan) -> tuple[Tensor, ...]:
    """Return log-prob, entropy, KL to the policy, KL to the reference, and both logsumexps of a chunk's tokens."""
    targets_C, device = plan.targets_N[rows], hidden_CH.device
    policy, reference = _Online(len(hidden_CH), device), _Online(len(hidden_CH), device)
    target_C, zeros_C = torch.zeros(len(hidden_CH), device=device), torch.zeros(len(hidden_CH), device=device)
    mean_logit = _Online(len(hidden_CH), device)
    for start in range(0, plan.head.vocabulary, TILE_IDS):
        policy_CK, reference_CK = plan.logits(hidden_CH, rows, start)
        inside_C = (targets_C >= start) & (targets_C < start + policy_CK.shape[1])
        index_C1 = (targets_C - start).clamp(0, policy_CK.shape[1] - 1).unsqueeze(1)
        target_C = torch.where(inside_C, policy_CK.gather(1, index_C1).squeeze(1), target_C)
        if reference_CK is not None:
            gap_CK = policy_CK - reference_CK
            policy.add(policy_CK, gap_CK)
            reference.add(reference_CK, gap_CK)
            if plan.entropy:
                mean_logit.add(policy_CK, policy_CK)
        else:
            policy.add(policy_CK, policy_CK if plan.entropy else None)
    lse_C = policy.lse_C
    if plan.reference is None:
        entropy_C = lse_C - policy.mean_C if plan.entropy else zeros_C
        return target_C - lse_C, entropy_C, zeros_C, zeros_C, lse_C, zeros_C
    reference_lse_C = reference.lse_C
    entropy_C = lse_C - mean_logit.mean_C if plan.entropy else zeros_C
    to_policy_C = lse_C - reference_lse_C - reference.mean_C
    to_reference_C = policy.mean_C - lse_C + reference_lse_C
    return target_C - lse_C, entropy_C, to_policy_C, to_reference_C, lse_C, reference_lse_C


def _tile_gradient(
    hidden_CH: Tensor,
    rows: slice,
    start: int,
    plan: _Plan,
    saved: tuple[Tensor, Tensor],
    gradients_C: list[Tensor],
) -> Tensor:
    """Return the gradient of ``hidden @ weight.T`` of a tile, ``[C, K]`` float32.

    With p the policy's and q the reference's probabilities, the logits' gradients are: of a log-prob onehot - p, of the
    entropy H -p (log p + H), of KL(q || p) p - q, of KL(p || q) p (log p - log q - KL).
    """
    to_logprob, to_entropy, to_policy_kl, to_reference_kl = (gradient.unsqueeze(1) for gradient in gradients_C)
    policy_CK, reference_CK = plan.logits(hidden_CH, rows, start)
    raw_CK = policy_CK * plan.temperature if plan.head.softcap is not None else policy_CK
    logprobs_CK = policy_CK - plan.lse_N[rows].unsqueeze(1)
    p_CK = logprobs_CK.exp()
    factor: Tensor = -to_logprob
    if reference_CK is not None:
        assert plan.reference_lse_N is not None
        reference_logprobs_CK = reference_CK.sub_(plan.reference_lse_N[rows].unsqueeze(1))
        gap_CK = logprobs_CK - reference_logprobs_CK - saved[1].unsqueeze(1)
        factor = factor + to_policy_kl + to_reference_kl * gap_CK
    if plan.entropy:
        factor = factor - to_entropy * logprobs_CK.add_(saved[0].unsqueeze(1))
    gradient_CK = p_CK.mul_(factor)
    if reference_CK is not None:
        gradient_CK -= to_policy_kl * reference_CK.exp_()
    targets_C = plan.targets_N[rows] - start
    inside_C = (targets_C >= 0) & (targets_C < gradient_CK.shape[1])
    column_C1 = targets_C.clamp(0, gradient_CK.shape[1] - 1).unsqueeze(1)
    gradient_CK.scatter_add_(1, column_C1, torch.where(inside_C, gradients_C[0], 0.0).unsqueeze(1))
    if plan.temperature != 1.0:
        gradient_CK /= plan.temperature
    return plan.head.tile_gradient(raw_CK, gradient_CK)
