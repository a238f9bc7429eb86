"""Measure the peak memory of token log-probs and entropies, forward and backward, at a vocabulary of 150k.

``full`` forms the ``[N, V]`` logits at once, as a plain loss does; ``chunked`` is what the learner uses.
"""

from __future__ import annotations

import sys

from torch import Tensor

from benchmarks.peak_memory import HIDDEN, VOCABULARY, compare, head_weight, hidden_states, report, targets
from rlkl.functional.logprobs import chunked_logprobs_and_entropy

TOKENS = 4096
WAYS = {"full": TOKENS, "chunked 1024": 1024, "chunked 256": 256}


def measure(way: str) -> None:
    """Print one way's cost; see `report`."""
    hidden_NH, weight_VH, targets_N = hidden_states(TOKENS, seed=0), head_weight(seed=1), targets(TOKENS)

    def loss() -> Tensor:
        if way == "full":
            logprobs_NV = (hidden_NH @ weight_VH.T).log_softmax(-1)
            return logprobs_NV.gather(-1, targets_N[:, None]).mean() - (logprobs_NV.exp() * logprobs_NV).sum(-1).mean()
        logprobs_N, entropy_N = chunked_logprobs_and_entropy(
            hidden_NH,
            lambda hidden_CH: hidden_CH @ weight_VH.T,
            targets_N,
            temperature=1.0,
            chunk_tokens=WAYS[way],
            with_entropy=True,
        )
        return logprobs_N.mean() + entropy_N.mean()

    report(loss)


def main() -> None:
    """Measure every way and print a table."""
    print(f"{TOKENS} tokens, vocabulary {VOCABULARY}, hidden {HIDDEN}, float32, log-probs and entropy with gradient")
    compare("benchmarks.logprob_memory", WAYS)


if __name__ == "__main__":
    measure(sys.argv[1]) if len(sys.argv) > 1 else main()
