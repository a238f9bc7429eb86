"""Measure the attention of short bfloat16 rows on a CPU: `rlkl.functional.short_attention` against torch's.

    python -m benchmarks.attention

Each shape is measured by turns, forward and backward. The limit `MOST_TOKENS` is chosen by this table.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from rlkl.functional.short_attention import MOST_TOKENS, short_attention

SHAPES = [(40, 64), (16, 160), (8, 256), (5, 384), (4, 512), (2, 1024)]
"""Rows and tokens of each."""
HEADS, KEY_HEADS, WIDTH = 8, 4, 64
ROUNDS = 9


def main() -> None:
    """Print milliseconds of both for each shape."""
    print("rows x tokens | torch | short | short / torch | taken")
    for rows, tokens in SHAPES:
        theirs, ours = measure(rows, tokens)
        taken = "yes" if tokens <= MOST_TOKENS else "no"
        print(f"{rows} x {tokens} | {theirs:.1f} ms | {ours:.1f} ms | {ours / theirs:.2f} | {taken}", flush=True)


def measure(rows: int, tokens: int) -> tuple[float, float]:
    """Return the medians of torch's attention and of the short one, in milliseconds."""
    query, gradient = (torch.randn(rows, HEADS, tokens, WIDTH).bfloat16() for _ in range(2))
    key, value = (torch.randn(rows, KEY_HEADS, tokens, WIDTH).bfloat16() for _ in range(2))
    inputs = [x.requires_grad_() for x in (query, key, value)]

    def pass_through(function: Callable[..., Tensor]) -> float:
        start = time.perf_counter()
        torch.autograd.grad(function(*inputs), inputs, gradient)
        return 1000 * (time.perf_counter() - start)

    def theirs(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)

    def ours(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return short_attention(query, key, value, scaling=None)

    both = [(pass_through(theirs), pass_through(ours)) for _ in range(ROUNDS + 2)][2:]
    return statistics.median(one for one, _ in both), statistics.median(other for _, other in both)


if __name__ == "__main__":
    main()
