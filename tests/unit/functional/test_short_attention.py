"""Attention of short rows in bfloat16, beside torch's kernel and beside float64."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from rlkl.functional.short_attention import MOST_TOKENS, is_short, short_attention
from rlkl.models.attention import attend


def inputs(rows: int, heads: int, key_heads: int, tokens: int, width: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        (1.5 * torch.randn(rows, tokens, count, width, generator=generator)).bfloat16().transpose(1, 2)
        for count in (heads, key_heads, key_heads, heads)
    ]


def torchs(query: Tensor, key: Tensor, value: Tensor, *, scaling: float | None) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=True)


def exact(query: Tensor, key: Tensor, value: Tensor, *, scaling: float | None) -> Tensor:
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    return scores.masked_fill(hidden, -torch.inf).softmax(-1) @ value


def gradients(function: Callable[..., Tensor], tensors: list[Tensor], scaling: float | None) -> tuple[Tensor, ...]:
    *parts, gradient = tensors
    leaves = [part.detach().requires_grad_() for part in parts]
    return torch.autograd.grad(function(*leaves, scaling=scaling), leaves, gradient)


SHAPES = [(3, 4, 2, 37, 32), (2, 4, 4, 64, 16), (2, 6, 1, 160, 64), (9, 8, 4, 200, 32), (1, 2, 2, 1, 32)]


@pytest.mark.parametrize("scaling", [None, 0.2])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_output_has_the_bits_of_torchs_attention(shape: tuple[int, ...], scaling: float | None):
    query, key, value, _ = inputs(*shape)
    wanted = torchs(query, key, value, scaling=scaling)
    with torch.no_grad():
        assert torch.equal(short_attention(query, key, value, scaling=scaling), wanted)
    found = short_attention(query.requires_grad_(), key, value, scaling=scaling)
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("scaling", [None, 0.2])
@pytest.mark.parametrize("shape", SHAPES)
def test_its_gradients_are_as_near_to_float64_as_torchs(shape: tuple[int, ...], scaling: float | None):
    tensors = inputs(*shape)
    wanted = gradients(exact, [x.double() for x in tensors], scaling)
    theirs = gradients(torchs, tensors, scaling)
    ours = gradients(short_attention, tensors, scaling)
    for own, other, right in zip(ours, theirs, wanted, strict=True):
        assert float((own - right).norm()) <= 1.5 * float((other - right).norm()) + 1e-3 * float(right.norm())


def test_only_short_rows_in_bfloat16_take_it():
    short = torch.zeros(1, 2, MOST_TOKENS, 8, dtype=torch.bfloat16)
    assert is_short(short, short) == torch.ops.mkldnn._is_mkldnn_bf16_supported()
    assert not is_short(short.float(), short.float())
    longer = torch.zeros(1, 2, MOST_TOKENS + 1, 8, dtype=torch.bfloat16)
    assert not is_short(longer, longer)
    assert not is_short(short.to("meta"), short.to("meta"))
    assert not is_short(short, short[..., :4])


def test_values_narrower_than_queries_keep_torchs_attention():
    """Deepseek's values are narrower than its queries."""
    query, key, value, _ = inputs(2, 4, 4, 9, 16)
    value = value[..., :8].clone().requires_grad_()
    found = attend(query, key, value, scaling=None, window=None, softcap=None)
    wanted = exact(query.double(), key.double(), value.double(), scaling=None)
    torch.testing.assert_close(found.double(), wanted, rtol=0.02, atol=0.02)
    found.sum().backward()
    assert value.grad is not None
