"""Measure the machine's rate of matrix products: ``python -m benchmarks.against.rate THREADS``."""

from __future__ import annotations

import json
import sys
import time

import torch

SIZE = 2048
TURNS = 8


def matrix_rate(dtype: torch.dtype, *, size: int = SIZE, turns: int = TURNS) -> float:
    """Return the best rate of a product of two square matrices, in operations a second."""
    left, right = (torch.randn(size, size).to(dtype) for _ in range(2))
    product = left @ right
    best = 0.0
    for _ in range(turns):
        start = time.perf_counter()
        torch.matmul(left, right, out=product)
        best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return best


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[1]))
    print(json.dumps({name: matrix_rate(getattr(torch, name)) for name in ("float32", "bfloat16")}))
