"""Measure the peak memory of a computation in a separate process, so that nothing else adds to the peak."""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

VOCABULARY = 151_936
HIDDEN = 128


def hidden_states(tokens: int, *, seed: int) -> Tensor:
    """Draw random ``[tokens, HIDDEN]`` states, with gradient."""
    return torch.randn(tokens, HIDDEN, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def head_weight(*, seed: int) -> Tensor:
    """Draw a random ``[VOCABULARY, HIDDEN]`` output head, with its gradient allocated."""
    generator = torch.Generator().manual_seed(seed)
    weight_VH = torch.randn(VOCABULARY, HIDDEN, generator=generator).mul_(HIDDEN**-0.5).requires_grad_()
    weight_VH.grad = torch.zeros_like(weight_VH)
    return weight_VH


def targets(tokens: int) -> Tensor:
    """Draw random target tokens."""
    return torch.randint(VOCABULARY, (tokens,), generator=torch.Generator().manual_seed(0))


def report(loss: Callable[[], Tensor]) -> None:
    """Print the growth of this process's peak memory (MiB) and the time (s) of one forward and backward pass."""
    report_growth(lambda: loss().backward())


def report_growth(work: Callable[[], object]) -> None:
    """Print the growth of this process's peak memory (MiB) and the time (s) that ``work`` takes."""
    before, start = _peak_mib(), time.perf_counter()
    work()
    print(f"{_peak_mib() - before:.0f} {time.perf_counter() - start:.2f}")


def compare(module: str, ways: Iterable[str]) -> None:
    """Run ``python -m module WAY`` for each way and print a table; the first way is what the others are compared to."""
    print(f"{'way':>30} {'peak MiB':>9} {'of first':>9} {'seconds':>8}")
    first = 0.0
    for way in ways:
        command = [sys.executable, "-m", module, way]
        mib, seconds = map(float, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
        first = first or mib
        print(f"{way:>30} {mib:9.0f} {mib / first:9.2f} {seconds:8.2f}")


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
