"""Compare log-probs from tiles of the vocabulary with log-probs from chunks of tokens, forward and backward.

    python -m benchmarks.head                        # every size
    python -m benchmarks.head --vocabulary 32768 --tokens 256

``chunks`` is `chunked_logprobs_and_entropy`, or `chunked_scores_against_reference` for the exact KL. ``tiles`` is
`linear_scores` for the same numbers. Each runs in a fresh process; peak memory is that beyond weights and inputs.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from benchmarks.against.measured import peak_mib
from rlkl.functional.linear_scores import LinearHead, linear_scores
from rlkl.functional.logprobs import WantedScores, chunked_logprobs_and_entropy, chunked_scores_against_reference

HIDDEN = 512
CHUNK_TOKENS = 1024
VOCABULARIES = (4_096, 32_768, 151_936)
TOKENS = (256, 4096)
DTYPES = ("float32", "bfloat16")
QUANTITIES = ("log-probs", "entropy", "exact KL")
WAYS = ("chunks", "tiles")
ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Hidden states, two heads and targets of one size."""

    quantity: str
    hidden_NH: Tensor
    weight_VH: Tensor
    reference_NH: Tensor
    reference_VH: Tensor
    targets_N: Tensor


def make_problem(quantity: str, vocabulary: int, tokens: int, dtype: torch.dtype, *, hidden: int = HIDDEN) -> Problem:
    """Draw a problem. The policy's hidden states and weight take a gradient."""
    generator = torch.Generator().manual_seed(0)

    def draw(rows: int, scale: float) -> Tensor:
        return torch.randn(rows, hidden, generator=generator).mul_(scale).to(dtype)

    return Problem(
        quantity=quantity,
        hidden_NH=draw(tokens, 1.0).requires_grad_(),
        weight_VH=draw(vocabulary, hidden**-0.5).requires_grad_(),
        reference_NH=draw(tokens, 1.0),
        reference_VH=draw(vocabulary, hidden**-0.5),
        targets_N=torch.randint(vocabulary, (tokens,), generator=generator),
    )


def by_chunks(problem: Problem) -> Tensor:
    """Return the mean of the wanted scores, by chunks of tokens."""

    def head(hidden_CH: Tensor) -> Tensor:
        return hidden_CH @ problem.weight_VH.T

    if problem.quantity == "exact KL":
        scores = chunked_scores_against_reference(
            (problem.hidden_NH, problem.reference_NH),
            (head, lambda hidden_CH: hidden_CH @ problem.reference_VH.T),
            problem.targets_N,
            WantedScores(kl_reference_to_policy=True),
            temperature=1.0,
            chunk_tokens=CHUNK_TOKENS,
        )
        return (scores.logprobs_N + scores.kl_reference_to_policy_N).mean()
    logprobs_N, entropy_N = chunked_logprobs_and_entropy(
        problem.hidden_NH,
        head,
        problem.targets_N,
        temperature=1.0,
        chunk_tokens=CHUNK_TOKENS,
        with_entropy=problem.quantity == "entropy",
    )
    return (logprobs_N + entropy_N).mean()


def by_tiles(problem: Problem) -> Tensor:
    """Return the mean of the wanted scores, by tiles of the vocabulary."""
    reference = (problem.reference_NH, LinearHead(weight_VH=problem.reference_VH))
    scores = linear_scores(
        (problem.hidden_NH, LinearHead(weight_VH=problem.weight_VH)),
        problem.targets_N,
        temperature=1.0,
        entropy=problem.quantity == "entropy",
        reference=reference if problem.quantity == "exact KL" else None,
    )
    further_N = {"entropy": scores.entropy_N, "exact KL": scores.kl_reference_to_policy_N}.get(problem.quantity)
    return (scores.logprobs_N if further_N is None else scores.logprobs_N + further_N).mean()


LOSSES: dict[str, Callable[[Problem], Tensor]] = {"chunks": by_chunks, "tiles": by_tiles}


def measure(way: str, quantity: str, vocabulary: int, tokens: int, dtype: str) -> tuple[float, float]:
    """Return seconds of a forward and backward pass (median of three after a first) and peak memory in MiB."""
    problem = make_problem(quantity, vocabulary, tokens, getattr(torch, dtype))
    problem.weight_VH.grad = torch.zeros_like(problem.weight_VH)
    before, seconds = peak_mib(), []
    for _ in range(4):
        start = time.perf_counter()
        LOSSES[way](problem).backward()
        seconds.append(time.perf_counter() - start)
    return median(seconds[1:]), peak_mib() - before


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the sizes and print a table."""
    parser = argparse.ArgumentParser(description="tiles of the vocabulary against chunks of tokens")
    parser.add_argument("--vocabulary", type=int, action="append", help="left out: 4,096, 32,768 and 151,936")
    parser.add_argument("--tokens", type=int, action="append", help="left out: 256 and 4,096")
    parser.add_argument("--dtype", action="append", choices=DTYPES, help="left out: both")
    parser.add_argument("--quantity", action="append", choices=QUANTITIES, help="left out: all")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(arguments)
    print(f"hidden {HIDDEN}, {options.threads} threads, forward and backward")
    print(f"{'':>9} {'dtype':>8} {'ids':>8} {'tokens':>6} | {'seconds':>17} {'ratio':>5} | {'peak MiB':>13}")
    for vocabulary in options.vocabulary or VOCABULARIES:
        for tokens in options.tokens or TOKENS:
            for dtype in options.dtype or DTYPES:
                for quantity in options.quantity or QUANTITIES:
                    size = (quantity, vocabulary, tokens, dtype)
                    (chunk_s, chunk_mib), (tile_s, tile_mib) = (_measured(way, size, options.threads) for way in WAYS)
                    print(
                        f"{quantity:>9} {dtype:>8} {vocabulary:8,} {tokens:6,} | {chunk_s:7.3f} -> {tile_s:6.3f} "
                        f"{tile_s / chunk_s:5.2f} | {chunk_mib:5,.0f} -> {tile_mib:4,.0f}",
                        flush=True,
                    )


def _measured(way: str, size: tuple[str, int, int, str], threads: int) -> tuple[float, float]:
    """Run `measure` in a fresh process."""
    code = f"import torch; torch.set_num_threads({threads}); from benchmarks.head import measure; print(*measure("
    command = [sys.executable, "-c", f"{code}{way!r}, *{size!r}))"]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    output = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    seconds, mib = map(float, output.split()[-2:])
    return seconds, mib


if __name__ == "__main__":
    main()
