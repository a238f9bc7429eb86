"""Peak memory of token log-probs and entropies, forward and backward, at a vocabulary of 150k.

Each way runs in a process of its own, so that its peak is its own. ``full`` forms the ``[N, V]`` logits at once, as a
plain loss does; ``chunked`` is what the learner uses.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from functools import partial

import torch
from torch import Tensor

from rlkl.functional.logprobs import chunked_logprobs_and_entropy

VOCABULARY = 151_936
HIDDEN = 128
TOKENS = 4096
WAYS = {"full": TOKENS, "chunked 1024": 1024, "chunked 256": 256}


def measure(way: str) -> None:
    """Print the growth of this process's peak memory (MiB) and the time (s) of one forward and backward pass."""
    generator = torch.Generator().manual_seed(0)
    hidden_NH = torch.randn(TOKENS, HIDDEN, generator=generator).requires_grad_()
    weight_VH = torch.randn(VOCABULARY, HIDDEN, generator=generator).mul_(HIDDEN**-0.5).requires_grad_()
    targets_N = torch.randint(VOCABULARY, (TOKENS,), generator=generator)
    weight_VH.grad = torch.zeros_like(weight_VH)
    before, start = _peak_mib(), time.perf_counter()
    logprobs_N, entropy_N = _ways()[way](hidden_NH, weight_VH, targets_N)
    (logprobs_N.mean() + entropy_N.mean()).backward()
    print(f"{_peak_mib() - before:.0f} {time.perf_counter() - start:.2f}")


def _ways() -> dict[str, partial[tuple[Tensor, Tensor]]]:
    return {"full": partial(_full), **{way: partial(_chunked, chunk) for way, chunk in WAYS.items() if way != "full"}}


def _full(hidden_NH: Tensor, weight_VH: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
    logprobs_NV = (hidden_NH @ weight_VH.T).log_softmax(-1)
    return logprobs_NV.gather(-1, targets_N[:, None])[:, 0], -(logprobs_NV.exp() * logprobs_NV).sum(-1)


def _chunked(chunk: int, hidden_NH: Tensor, weight_VH: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
    return chunked_logprobs_and_entropy(
        hidden_NH,
        lambda hidden_CH: hidden_CH @ weight_VH.T,
        targets_N,
        temperature=1.0,
        chunk_tokens=chunk,
        with_entropy=True,
    )


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Measure every way and print a table."""
    print(f"{TOKENS} tokens, vocabulary {VOCABULARY}, hidden {HIDDEN}, float32, log-probs and entropy with gradient")
    print(f"{'way':>14} {'peak MiB':>9} {'of full':>8} {'seconds':>8}")
    full = 0.0
    for way in WAYS:
        command = [sys.executable, "-m", "benchmarks.logprob_memory", way]
        mib, seconds = map(float, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
        full = full or mib
        print(f"{way:>14} {mib:9.0f} {mib / full:8.2f} {seconds:8.2f}")


if __name__ == "__main__":
    measure(sys.argv[1]) if len(sys.argv) > 1 else main()
