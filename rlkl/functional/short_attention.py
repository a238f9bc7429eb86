"""Causal attention of short rows in bfloat16 on a CPU, with a backward pass of matrix products.

torch's fused kernel is fast forward and slow backward: 45 ms for 16 rows of 160 tokens with 8 heads of 64, where the
five products take 15 ms on two cores with AMX. From about 500 tokens on, its blocks win. `benchmarks/attention.py`
measures both.

Shapes: B rows, H query heads, K key heads, T tokens, D numbers a head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

MOST_TOKENS = 384
"""Longer rows are left to the fused kernel."""
_BLOCK = 1 << 20
"""Scores that are computed at a time, so that they stay in the cache."""


def is_short(query_BHTD: Tensor, value_BKTD: Tensor) -> bool:
    """Return whether `short_attention` is the faster one: few tokens, bfloat16, on a CPU with products of that.

    It needs values of the width of the queries.
    """
    return (
        query_BHTD.device.type == "cpu"
        and query_BHTD.shape[-1] == value_BKTD.shape[-1]
        and query_BHTD.dtype == torch.bfloat16
        and query_BHTD.shape[2] <= MOST_TOKENS
        and torch.backends.mkldnn.is_available()
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


def short_attention(query_BHTD: Tensor, key_BKTD: Tensor, value_BKTD: Tensor, *, scaling: float | None) -> Tensor:
    """Compute causal attention ``[B, H, T, D]``: forward with the bits of torch's `scaled_dot_product_attention`.

    Gradients differ from torch's by rounding. ``scaling``: factor of the scores, 1 / sqrt(D) if None.
    """
    if not torch.is_grad_enabled():
        return F.scaled_dot_product_attention(
            query_BHTD, key_BKTD, value_BKTD, is_causal=True, scale=scaling, enable_gqa=True
        )
    factor = query_BHTD.shape[-1] ** -0.5 if scaling is None else scaling
    return _ShortAttention.apply(query_BHTD, key_BKTD, value_BKTD, factor)  # pyright: ignore[reportReturnType] - untyped


class _ShortAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        groups = query.shape[1] // key.shape[1]
        output, logsumexp_BHT = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query,
            key.repeat_interleave(groups, dim=1),
            value.repeat_interleave(groups, dim=1),
            0.0,
            True,
            scale=scaling,
        )
        ctx.save_for_backward(query, key, value, logsumexp_BHT)
        ctx.scaling = scaling
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        (gradient,) = gradients
        query, key, value, logsumexp = ctx.saved_tensors
        rows, heads, tokens, width = query.shape
        key_heads = key.shape[1]
        groups = heads // key_heads
        # The queries of one key head in one matrix [G * T, D]: the products then add up the gradients of its key.
        query, gradient, logsumexp = (
            x.reshape(rows * key_heads, groups * tokens, x.shape[-1])
            for x in (query, gradient, logsumexp.unsqueeze(-1))
        )
        key, value = (x.reshape(-1, tokens, width) for x in (key, value))
        to_query, to_key, to_value = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
        step = max(1, _BLOCK // (groups * tokens * tokens))
        for start in range(0, len(key), step):
            part = slice(start, start + step)
            scores = torch.baddbmm(
                -logsumexp[part], query[part].float(), key[part].float().transpose(1, 2), alpha=ctx.scaling
            )
            shares = scores.exp_().to(query.dtype)
            shares.view(-1, groups, tokens, tokens).tril_()
            to_value[part] = shares.transpose(1, 2) @ gradient[part]
            to_shares = gradient[part] @ value[part].transpose(1, 2)
            to_scores = torch.ops.aten._softmax_backward_data(to_shares, shares, -1, shares.dtype)
            to_query[part] = to_scores @ key[part]
            to_key[part] = to_scores.transpose(1, 2) @ query[part]
        return (
            to_query.mul_(ctx.scaling).view(rows, heads, tokens, width),
            to_key.mul_(ctx.scaling).view(rows, key_heads, tokens, width),
            to_value.view(rows, key_heads, tokens, width),
            None,
        )
