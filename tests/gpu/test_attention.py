"""torch's attention for sequences of unequal lengths in one row, against its attention for padded rows, in bfloat16."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.varlen import varlen_attn

LENGTHS = (1, 5, 64, 17, 130, 2)
HEADS, WIDTH = 8, 64


def draw(heads: int, *, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(sum(LENGTHS), heads, WIDTH, generator=generator).to("cuda", torch.bfloat16).requires_grad_()


def packed(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """All sequences in one row, each sees itself alone and only what came before."""
    ends = torch.tensor([0, *LENGTHS]).cumsum(0).to("cuda", torch.int32)
    longest = max(LENGTHS)
    output = varlen_attn(query, key, value, ends, ends, longest, longest, window_size=(-1, 0), enable_gqa=True)
    assert isinstance(output, Tensor)
    return output


def one_by_one(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    parts = zip(*(x.split(LENGTHS) for x in (query, key, value)), strict=True)
    return torch.cat(
        [
            F.scaled_dot_product_attention(
                *(x.transpose(0, 1).unsqueeze(0) for x in part), is_causal=True, enable_gqa=True
            )[0].transpose(0, 1)
            for part in parts
        ]
    )


@pytest.mark.parametrize("kv_heads", [8, 2])
def test_output_and_gradients_equal_those_of_padded_rows(kv_heads: int):
    inputs = (draw(HEADS, seed=0), draw(kv_heads, seed=1), draw(kv_heads, seed=2))
    weights = torch.randn(sum(LENGTHS), HEADS, WIDTH, device="cuda", dtype=torch.bfloat16)
    results = []
    for way in (packed, one_by_one):
        output = way(*inputs)
        results.append((output, *torch.autograd.grad((output * weights).sum(), inputs)))
    exact = one_by_one(*(x.float() for x in inputs))
    assert (results[0][0].float() - exact).norm() < 2 * (results[1][0].float() - exact).norm() + 1e-3 * exact.norm()
    for ours, wanted in zip(*results, strict=True):
        assert (ours.float() - wanted.float()).norm() < 2e-2 * wanted.float().norm()
