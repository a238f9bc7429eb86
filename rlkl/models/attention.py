"""Attention over packed rows: each token attends only to its own sequence; outside of attention there is no padding.

On CUDA in half precision it is `torch.nn.attention.varlen.varlen_attn`. Elsewhere, rows of similar length are padded
and go through torch's fused attention, or through `short_attention`. Capped scores (Gemma 2) are computed without a
fused kernel.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface

from rlkl.functional.packing import Packing
from rlkl.functional.short_attention import is_short, short_attention

NAME = "rlkl_packed"
"""The name of this attention in transformers."""

_UNKNOWN = ("position_bias", "s_aux", "head_mask", "alibi")
"""Arguments of transformers that change attention in a way that is not known here."""


class NotPackable(Exception):
    """The model's attention has a feature that rlkl does not support."""


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Compute causal attention of packed tokens ``[1, heads, N, width]``; return ``[1, N, heads, width]``.

    The signature is that of transformers' attention functions. Raises `NotPackable` for any other feature of
    attention, or without a packing.
    """
    packing: Packing | None = others.get("packing")
    unknown = [name for name in _UNKNOWN if others.get(name) is not None]
    if packing is None or attention_mask is not None or unknown or query.shape[2] != packing.count:
        raise NotPackable(", ".join(unknown) or "the model does not pass `packing` to its attention function")
    scaling, softcap = others.get("scaling"), others.get("softcap")
    window = others.get("sliding_window", getattr(module, "sliding_window", None))
    inputs = [x[0].transpose(0, 1) for x in (query, key, value)]
    if query.is_cuda and query.dtype != torch.float32 and softcap is None:
        output_NHD = _ragged(packing, inputs, scaling, window)
    else:
        output_NHD = _blocks(packing, inputs, scaling, window, softcap)
    return output_NHD.unsqueeze(0), None


AttentionInterface.register(NAME, packed_attention)


def _ragged(packing: Packing, inputs: list[Tensor], scaling: float | None, window: int | None) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    starts, longest = packing.starts, packing.shape[1]
    query, key, value = (packing.ragged.unpack(x).contiguous() for x in inputs)
    left = -1 if window is None else window - 1
    output = varlen_attn(
        query,
        key,
        value,
        starts,
        starts,
        longest,
        longest,
        scale=scaling,
        window_size=(left, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    assert isinstance(output, Tensor)
    return packing.ragged.repack(output)


def _blocks(
    packing: Packing, inputs: list[Tensor], scaling: float | None, window: int | None, softcap: float | None
) -> Tensor:
    layout, shapes = packing.attention
    unpacked = [layout.unpack(x) for x in inputs]
    sizes = [rows * length for rows, length in shapes]
    outputs = []
    for shape, *parts in zip(shapes, *(x.split(sizes) for x in unpacked), strict=True):
        query, key, value = (part.view(*shape, *part.shape[1:]).transpose(1, 2) for part in parts)
        output = attend(query, key, value, scaling=scaling, window=window, softcap=softcap)
        outputs.append(output.transpose(1, 2).flatten(0, 1))
    return layout.repack(torch.cat(outputs))


def attend(
    query: Tensor, key: Tensor, value: Tensor, *, scaling: float | None, window: int | None, softcap: float | None
) -> Tensor:
    """Compute causal attention of rows ``[rows, heads, tokens, width]``; ``window``: tokens back that are seen."""
    tokens = query.shape[2]
    is_narrow = window is not None and window < tokens
    if softcap is None and not is_narrow and is_short(query, value):
        return short_attention(query, key, value, scaling=scaling)
    if softcap is None:
        mask = _band(tokens, window, query.device) if is_narrow else None
        return F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            is_causal=mask is None,
            scale=scaling,
            enable_gqa=query.shape[1] != key.shape[1],
        )
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    scores = (query @ key.transpose(2, 3)) * (scaling if scaling is not None else 1 / math.sqrt(query.shape[3]))
    scores = torch.tanh(scores / softcap) * softcap
    scores = scores.masked_fill(~_band(tokens, window if is_narrow else None, query.device), -torch.inf)
    return scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype) @ value


def _band(tokens: int, window: int | None, device: torch.device) -> Tensor:
    """Return which tokens see which, ``[tokens, tokens]`` bool: those before, at most ``window`` with themselves."""
    places = torch.arange(tokens, device=device)
    distance = places.unsqueeze(1) - places
    return (distance >= 0) & (distance < (tokens if window is None else window))
