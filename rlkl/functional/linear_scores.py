"""Log-probs, entropies and exact KLs of a linear head, without the logits of all tokens or of the whole vocabulary.

The forward pass goes over tiles of the vocabulary and keeps a few numbers a token: the logsumexp and what the gradient
needs of the entropy and the KL. The backward pass computes the logits of each tile once more and writes the gradient of
hidden states and weights itself, so nothing of the size of a logit is kept between the two passes.

Shapes: N tokens, C tokens of a chunk, H hidden size, V vocabulary, K ids of a tile. All outputs are float32, in nats.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

TILE_IDS = 4096
_LOWEST = -1e30
"""Logit of a token that a bias of -inf excludes. With -inf a tile of such tokens would have no softmax."""


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

    def tile(self, hidden_CH: Tensor, start: int, out: Tensor) -> Tensor:
        """Write float32 logits ``[C, K]`` of the ids from ``start`` on into the buffer ``out``; return them."""
        weight_KH = self.weight_VH[start : start + TILE_IDS]
        logits_CK = _view(out, len(hidden_CH), len(weight_KH))
        if hidden_CH.dtype == torch.float32:
            torch.mm(hidden_CH, weight_KH.T, out=logits_CK)
        else:
            logits_CK.copy_(hidden_CH @ weight_KH.T)
        if self.bias_V is not None:
            logits_CK += self.bias_V[start : start + TILE_IDS].float()
            logits_CK.clamp_min_(_LOWEST)
        if self.scale != 1.0:
            logits_CK *= self.scale
        return logits_CK if self.softcap is None else logits_CK.div_(self.softcap).tanh_().mul_(self.softcap)


class TokenScores(NamedTuple):
    """Per token, float32, in nats: log-probability, entropy, exact KLs and divergence over the vocabulary."""

    logprobs_N: Tensor
    entropy_N: Tensor
    kl_reference_to_policy_N: Tensor
    kl_policy_to_reference_N: Tensor
    cauchy_schwarz_N: Tensor


def linear_scores(
    policy: tuple[Tensor, LinearHead],
    targets_N: Tensor,
    *,
    temperature: float,
    entropy: bool,
    reference: tuple[Tensor, LinearHead] | None = None,
    chunk_tokens: int = 1024,
) -> TokenScores:
    """Compute scores of ``softmax(head(hidden) / temperature)``, with gradient to hidden states, weight and bias.

    ``policy``: hidden states ``[N, H]`` and head. ``reference``: those of a frozen model, to compare with; without it
    both KLs are zero. Without ``entropy`` the entropies are zero. ``chunk_tokens``: tokens of a tile. A KL is exact to
    about 1e-6 nats. The Cauchy-Schwarz divergence is not computed here: it is zero.
    """
    hidden_NH, head = policy
    plan = _Plan(
        head=head,
        targets_N=targets_N,
        temperature=temperature,
        entropy=entropy,
        reference=reference,
        chunk=chunk_tokens,
    )
    scores: tuple[Tensor, ...] = _Scores.apply(hidden_NH, head.weight_VH, head.bias_V, plan)  # pyright: ignore
    logprobs_N, entropy_N, to_policy_N, to_reference_N = scores
    return TokenScores(logprobs_N, entropy_N, to_policy_N, to_reference_N, torch.zeros_like(logprobs_N))


@dataclass(slots=True, kw_only=True)
class _Plan:
    """The constants of one call, and the numbers that the forward pass keeps."""

    head: LinearHead
    targets_N: Tensor
    temperature: float
    entropy: bool
    reference: tuple[Tensor, LinearHead] | None
    chunk: int
    lse_N: Tensor = field(init=False)
    reference_lse_N: Tensor = field(init=False)


@dataclass(frozen=True, slots=True)
class _Tile:
    """Ids of the vocabulary, tokens, and buffers for numbers of each pair of them."""

    ids: slice
    rows: slice
    buffers: Sequence[Tensor]

    def logits(self, plan: _Plan, hidden_CH: Tensor) -> Tensor:
        """Return the policy's logits over temperature, in the first buffer."""
        logits_CK = plan.head.tile(hidden_CH, self.ids.start, self.buffers[0])
        return logits_CK if plan.temperature == 1.0 else logits_CK.div_(plan.temperature)

    def reference_logits(self, plan: _Plan) -> Tensor | None:
        """Return the reference's logits over temperature, in the second buffer."""
        if plan.reference is None:
            return None
        hidden_NH, head = plan.reference
        return head.tile(hidden_NH[self.rows], self.ids.start, self.buffers[1]).div_(plan.temperature)

    def column(self, targets_C: Tensor) -> tuple[Tensor, Tensor]:
        """Return whether each target is among the ids, and its column ``[C, 1]``, clamped to the tile."""
        column_C = targets_C - self.ids.start
        width = self.ids.stop - self.ids.start
        return (column_C >= 0) & (column_C < width), column_C.clamp(0, width - 1).unsqueeze(1)


class _Online:
    """A logsumexp, and a mean under its softmax, that grow tile by tile."""

    def __init__(self, count: int, device: torch.device) -> None:
        self.lse_C = torch.full((count,), -torch.inf, device=device)
        self.mean_C = torch.zeros(count, device=device)

    def add(self, logits_CK: Tensor, values_CK: Tensor | None, buffer: Tensor) -> None:
        """Take in a tile; ``values_CK`` are averaged, each with its id's probability."""
        softmax_CK = torch.softmax(logits_CK, dim=1, out=_view(buffer, *logits_CK.shape))
        largest_C, index_C = logits_CK.max(dim=1)
        lse_C = largest_C - softmax_CK.gather(1, index_C.unsqueeze(1)).squeeze(1).log()
        total_C = torch.logaddexp(self.lse_C, lse_C)
        if values_CK is not None:
            mean_C = softmax_CK.mul_(values_CK).sum(dim=1)
            self.mean_C = self.mean_C * (self.lse_C - total_C).exp() + mean_C * (lse_C - total_C).exp()
        self.lse_C = total_C


class _Scores(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, plan: _Plan
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        buffers = _buffers(hidden_NH, plan, 4 if plan.reference is not None else 2)
        parts = [_forward_chunk(hidden_NH[rows], rows, plan, buffers) for rows in _chunks(len(hidden_NH), plan.chunk)]
        scores_N = [torch.cat(column) for column in zip(*parts, strict=True)]
        logprobs_N, entropy_N, to_policy_N, to_reference_N, plan.lse_N, plan.reference_lse_N = scores_N
        ctx.plan = plan
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(hidden_NH, weight_VH, entropy_N, to_reference_N)
        # Rounding may push a small KL below zero. Its gradient does not depend on that.
        return logprobs_N, entropy_N.clone(), to_policy_N.clamp_min(0.0), to_reference_N.clamp_min(0.0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        hidden_NH, weight_VH, *saved_N = ctx.saved_tensors
        plan: _Plan = ctx.plan
        to_hidden, to_weight, to_bias = ctx.needs_input_grad[:3]
        hidden_gradient = torch.zeros_like(hidden_NH, dtype=torch.float32) if to_hidden else None
        weight_gradient = torch.zeros_like(weight_VH) if to_weight else None
        bias_gradient = torch.zeros(plan.head.vocabulary, device=hidden_NH.device) if to_bias else None
        buffers = _buffers(hidden_NH, plan, 3 if plan.reference is not None else 2)
        for ids in _tiles(plan.head.vocabulary):
            total_KH = torch.zeros(weight_VH[ids].shape, device=hidden_NH.device) if to_weight else None
            for rows in _chunks(len(hidden_NH), plan.chunk):
                hidden_CH, tile = hidden_NH[rows], _Tile(ids, rows, buffers)
                logits_gradient_CK = _tile_gradient(hidden_CH, tile, plan, saved_N, gradients)
                low_CK = logits_gradient_CK.to(weight_VH.dtype)
                if hidden_gradient is not None:
                    _add_product(hidden_gradient[rows], low_CK, weight_VH[ids])
                if total_KH is not None:
                    _add_product(total_KH, low_CK.T, hidden_CH)
                if bias_gradient is not None:
                    bias_gradient[ids] += logits_gradient_CK.sum(dim=0)
            if weight_gradient is not None and total_KH is not None:
                weight_gradient[ids] = total_KH
        return (
            None if hidden_gradient is None else hidden_gradient.to(hidden_NH.dtype),
            weight_gradient,
            None if bias_gradient is None else bias_gradient.to(weight_VH.dtype),
            None,
        )


def _chunks(count: int, size: int) -> Iterator[slice]:
    yield from (slice(start, min(start + size, count)) for start in range(0, max(count, 1), size))


def _tiles(vocabulary: int) -> Iterator[slice]:
    yield from (slice(start, min(start + TILE_IDS, vocabulary)) for start in range(0, vocabulary, TILE_IDS))


def _buffers(hidden_NH: Tensor, plan: _Plan, count: int) -> list[Tensor]:
    """Return memory for ``count`` tiles. A fresh tensor each time would cost page faults."""
    size = min(len(hidden_NH), plan.chunk) * TILE_IDS
    return [torch.empty(size, dtype=torch.float32, device=hidden_NH.device) for _ in range(count)]


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add a matrix product to a float32 tensor."""
    if left.dtype == torch.float32:
        total.addmm_(left, right)
    else:
        total += left @ right


def _view(buffer: Tensor, rows: int, columns: int) -> Tensor:
    return buffer[: rows * columns].view(rows, columns)


def _forward_chunk(hidden_CH: Tensor, rows: slice, plan: _Plan, buffers: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return log-prob, entropy, KL to the policy, KL to the reference, and both logsumexps of a chunk's tokens."""
    targets_C, device = plan.targets_N[rows], hidden_CH.device
    policy, reference, logit = (_Online(len(hidden_CH), device) for _ in range(3))
    zeros_C = torch.zeros(len(hidden_CH), device=device)
    target_C, scratch = zeros_C, buffers[-1]
    for ids in _tiles(plan.head.vocabulary):
        tile = _Tile(ids, rows, buffers)
        policy_CK, reference_CK = tile.logits(plan, hidden_CH), tile.reference_logits(plan)
        inside_C, column_C1 = tile.column(targets_C)
        target_C = torch.where(inside_C, policy_CK.gather(1, column_C1).squeeze(1), target_C)
        if reference_CK is None:
            policy.add(policy_CK, policy_CK if plan.entropy else None, scratch)
            continue
        gap_CK = torch.sub(policy_CK, reference_CK, out=_view(buffers[2], *policy_CK.shape))
        policy.add(policy_CK, gap_CK, scratch)
        reference.add(reference_CK, gap_CK, scratch)
        if plan.entropy:
            logit.add(policy_CK, policy_CK, scratch)
    logprobs_C = target_C - policy.lse_C
    if plan.reference is None:
        entropy_C = policy.lse_C - policy.mean_C if plan.entropy else zeros_C
        return logprobs_C, entropy_C, zeros_C, zeros_C, policy.lse_C, zeros_C
    entropy_C = policy.lse_C - logit.mean_C if plan.entropy else zeros_C
    to_policy_C = policy.lse_C - reference.lse_C - reference.mean_C
    to_reference_C = policy.mean_C - policy.lse_C + reference.lse_C
    return logprobs_C, entropy_C, to_policy_C, to_reference_C, policy.lse_C, reference.lse_C


def _tile_gradient(
    hidden_CH: Tensor, tile: _Tile, plan: _Plan, saved_N: Sequence[Tensor], gradients: Sequence[Tensor | None]
) -> Tensor:
    """Return the gradient of ``hidden @ weight.T`` of a tile, ``[C, K]`` float32.

    With p the policy's and q the reference's probabilities, the logits' gradients are: of a log-prob onehot - p, of the
    entropy H -p (log p + H), of KL(q || p) p - q, of KL(p || q) p (log p - log q - KL). ``saved_N``: H and KL(p || q).
    """
    rows = tile.rows
    of_logprob, of_entropy, of_kl_to_policy, of_kl_to_reference = (
        None if gradient is None else gradient[rows].unsqueeze(1) for gradient in gradients
    )
    logits_CK, reference_CK = tile.logits(plan, hidden_CH), tile.reference_logits(plan)
    # The derivative of the cap, from its value: 1 - (cap / c)^2.
    cap = plan.head.softcap
    slope_CK = None if cap is None else 1.0 - (logits_CK * (plan.temperature / cap)).square_()
    logprobs_CK = logits_CK.sub_(plan.lse_N[rows].unsqueeze(1))
    gradient_CK = torch.exp(logprobs_CK, out=_view(tile.buffers[-1], *logprobs_CK.shape))
    factor: Tensor | float = 0.0 if of_logprob is None else -of_logprob
    if reference_CK is not None:
        reference_CK.sub_(plan.reference_lse_N[rows].unsqueeze(1))
        if of_kl_to_policy is not None:
            factor = factor + of_kl_to_policy
        if of_kl_to_reference is not None:
            gap_CK = logprobs_CK - reference_CK
            factor = factor + of_kl_to_reference * gap_CK.sub_(saved_N[1][rows].unsqueeze(1))
    if of_entropy is not None and plan.entropy:
        factor = factor - of_entropy * logprobs_CK.add_(saved_N[0][rows].unsqueeze(1))
    gradient_CK.mul_(factor)
    if reference_CK is not None and of_kl_to_policy is not None:
        gradient_CK.sub_(reference_CK.exp_().mul_(of_kl_to_policy))
    if of_logprob is not None:
        inside_C, column_C1 = tile.column(plan.targets_N[rows])
        gradient_CK.scatter_add_(1, column_C1, torch.where(inside_C.unsqueeze(1), of_logprob, 0.0))
    factor = plan.head.scale / plan.temperature
    if slope_CK is not None:
        gradient_CK.mul_(slope_CK)
    return gradient_CK if factor == 1.0 else gradient_CK.mul_(factor)
