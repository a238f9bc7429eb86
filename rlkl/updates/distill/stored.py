"""Stored answers in the place of samples (GKD's mixture, arXiv 2306.13649, algorithm 1). Pure Python."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rlkl.seeds import derive_seed
from rlkl.types import Completion, Example, Rollout

STORED_SAMPLE = -1
"""The sample index of a stored answer: no sample has it, so no number of the answer is recorded for a sample."""


def with_stored_answers(examples: Sequence[Example], on_policy_fraction: float, seed: int) -> list[Example]:
    """Replace a share of the samples by the first stored answer of their prompts; the others stay, in order.

    The share is exact but for rounding. A hash of the recipe's seed, the draw of the prompt and the sample's number
    chooses, so neither rewards nor the order of the samples do, and a resumed run chooses alike.
    """
    count = round((1 - on_policy_fraction) * len(examples))
    if not count:
        return list(examples)

    def drawn(row: int) -> int:
        rollout = examples[row].rollout
        return derive_seed(seed, "stored answers", rollout.draw, rollout.sample_index)

    stored = set(sorted(range(len(examples)), key=drawn)[:count])
    return [_stored(example) if row in stored else example for row, example in enumerate(examples)]


def _stored(example: Example) -> Example:
    """Return the example with the stored answer of its prompt, which the policy did not sample: it has no log-probs."""
    answer = Completion(token_ids=example.prompt.answers[0], logprobs=None, finish_reason="stop")
    rollout = Rollout(
        sample_index=STORED_SAMPLE,
        completion=answer,
        reward=0.0,
        components={},
        weights_version=example.rollout.weights_version,
        draw=example.rollout.draw,
    )
    return replace(example, rollout=rollout)
