"""METEOR similarity between completions of different prompts: how similar a policy's answers to different prompts are.

METEOR (Banerjee and Lavie, 2005) as NLTK computes it: with m matched words of a reference and a hypothesis,
P = m / |hypothesis|, R = m / |reference|, F = P R / (0.9 P + 0.1 R); the score is F (1 - 0.5 (chunks / m)^3), and 0
without a match. It is asymmetric, so both directions are averaged. SuperHF (arXiv 2310.16763) reads collapse off it.

Roughly: up to 0.1 is usual diversity for free text, 0.3 and more is collapse, near 1 is one text for all. A small
language has a higher floor, so compare with the policy's start. Empty completions score 0 and look diverse; read it
beside ``rollout/empty_fraction`` and ``rollout/length_mean``.

Where NLTK's WordNet corpus is installed, words also match by stem and by synonym, as in NLTK's own defaults; where it
is absent, only equal words match (about 10% lower, in the same order). Nothing is ever downloaded.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache
from itertools import combinations
from statistics import fmean
from typing import Any

from nltk.corpus import wordnet
from nltk.stem.api import StemmerI
from nltk.stem.porter import PorterStemmer
from nltk.translate.meteor_score import single_meteor_score

from rlkl.types import RolloutGroup


def meteor(reference: str, hypothesis: str) -> float:
    """Compute METEOR of a hypothesis against one reference, in [0, 1]. White space separates words; case is ignored."""
    return single_meteor_score(reference.split(), hypothesis.split(), **_matching())


def pair_similarity(first: str, second: str) -> float:
    """Average METEOR over both directions."""
    return (meteor(first, second) + meteor(second, first)) / 2


def similarity_of_all(texts: Sequence[str]) -> float | None:
    """Average over all ordered pairs of texts; return None for fewer than two texts."""
    if len(texts) < 2:
        return None
    return fmean(pair_similarity(first, second) for first, second in combinations(texts, 2))


def sampled_similarity(groups: Sequence[RolloutGroup], *, pairs: int, seed: int) -> float | None:
    """Average over ``pairs`` independent pairs of completions of different prompts, each drawn uniformly.

    Groups of one prompt (a draw may hold a prompt twice) count as that one prompt. None where there is one prompt only.
    """
    texts = [(group.prompt.id, rollout.completion.text) for group in groups for rollout in group.rollouts]
    if len({prompt_id for prompt_id, _ in texts}) < 2:
        return None
    rng = random.Random(seed)
    return fmean(pair_similarity(*_draw_pair(texts, rng)) for _ in range(pairs))


def _draw_pair(texts: Sequence[tuple[str, str]], rng: random.Random) -> tuple[str, str]:
    while True:
        (first_id, first), (second_id, second) = rng.sample(texts, 2)
        if first_id != second_id:
            return first, second


class _SameWord(StemmerI):
    """Leaves words as they are, so that the stem stage finds nothing that the exact stage did not."""

    def stem(self, token: str) -> str:
        return token


class _NoSynonyms:
    """Stands where WordNet is absent: the synonym stage then finds nothing."""

    def synsets(self, word: str) -> list[Any]:
        return []


@cache
def _matching() -> dict[str, Any]:
    """Return the later stages of matching that this machine can do."""
    try:
        wordnet.ensure_loaded()
    except LookupError:
        return {"stemmer": _SameWord(), "wordnet": _NoSynonyms()}
    return {"stemmer": PorterStemmer(), "wordnet": wordnet}
