"""Measure the peak memory of exact KLs over a vocabulary of 150k, relative to token log-probs alone.

All forms have the same ``learner.logits_chunk_tokens``; the chunks of the exact forms are shorter by design. The goal
is the first ratio: exact KL(reference ‖ policy) at no more than 1.5 times the memory of log-probs alone.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor

from benchmarks.peak_memory import HIDDEN, VOCABULARY, compare, head_weight, hidden_states, report, targets
from rlkl.functional.logprobs import (
    WantedScores,
    chunked_logprobs_and_entropy,
    chunked_scores_against_reference,
)

TOKENS = 1024
CHUNK = 1024
LOGPROBS = "log-probs"
WAYS = {
    "KL(ref || policy)": WantedScores(kl_reference_to_policy=True),
    "KL(policy || ref)": WantedScores(kl_policy_to_reference=True),
    "both and entropy": WantedScores(entropy=True, kl_reference_to_policy=True, kl_policy_to_reference=True),
    "KL(ref || policy), top 128": WantedScores(kl_reference_to_policy=True, top_k=128),
}


def measure(way: str) -> None:
    """Print one way's cost; see `report`. Both heads are there in every way."""
    hidden_NH, reference_NH = hidden_states(TOKENS, seed=0), hidden_states(TOKENS, seed=1)
    weight_VH, reference_VH = head_weight(seed=2), head_weight(seed=3).detach()
    targets_N = targets(TOKENS)

    def policy_head(hidden_CH: Tensor) -> Tensor:
        return hidden_CH @ weight_VH.T

    def loss() -> Tensor:
        if way == LOGPROBS:
            logprobs_N, _ = chunked_logprobs_and_entropy(
                hidden_NH, policy_head, targets_N, temperature=1.0, chunk_tokens=CHUNK, with_entropy=False
            )
            return logprobs_N.mean()
        scores = chunked_scores_against_reference(
            (hidden_NH, reference_NH),
            (policy_head, lambda hidden_CH: hidden_CH @ reference_VH.T),
            targets_N,
            WAYS[way],
            temperature=1.0,
            chunk_tokens=CHUNK,
        )
        return torch.stack(scores).sum(dim=0).mean()

    report(loss)


def main() -> None:
    """Measure every way and print a table."""
    print(f"{TOKENS} tokens in chunks of {CHUNK}, vocabulary {VOCABULARY}, hidden {HIDDEN}, float32, with gradient")
    compare("benchmarks.exact_kl_memory", [LOGPROBS, *WAYS])


if __name__ == "__main__":
    measure(sys.argv[1]) if len(sys.argv) > 1 else main()
