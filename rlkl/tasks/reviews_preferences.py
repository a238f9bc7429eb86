"""Preferences over reviews: what annotators who mostly skim would choose.

Skimming annotators count words of praise and of blame and like emphasis, whatever the grammar. The others read, and
prefer by the gold reward. Neither is sure: preferences are drawn from a logistic (Bradley-Terry) model.
"""

from __future__ import annotations

import math
import random
from typing import Any

from rlkl.tasks.reviews_language import INTENSIFIERS, VALENCE, gold_reward, praises

_EMPHASIS = 0.5
"""The weight of an intensifier in a skimmer's impression; a word of praise has weight 1."""
LISTED = 4
"""Reviews of one prompt that are scored."""
_READERS_SCALE = 8.0
"""Logits between gold rewards of 0 and 1."""


def preference(rng: random.Random, prompt: str, texts: tuple[str, str], *, careful_fraction: float) -> dict[str, Any]:
    """Return one annotated pair: ``prompt``, ``chosen``, ``rejected``, and the gold reward of both."""
    gold = [gold_reward(prompt, text) for text in texts]
    if rng.random() < careful_fraction:
        margin = _READERS_SCALE * (gold[0] - gold[1])
    else:
        margin = impression(texts[0]) - impression(texts[1])
    first_wins = rng.random() < 1 / (1 + math.exp(-margin))
    chosen, rejected = (0, 1) if first_wins else (1, 0)
    return {
        "prompt": prompt,
        "chosen": texts[chosen],
        "rejected": texts[rejected],
        "chosen_gold": gold[chosen],
        "rejected_gold": gold[rejected],
    }


def scored(number: int, prompt: str, text: str) -> dict[str, Any]:
    """Return one review and its score in logits, those of `preference` for an annotator who reads."""
    return {
        "id": f"scored-{number}",
        "prompt": prompt,
        "answer": text,
        "score": _READERS_SCALE * gold_reward(prompt, text),
    }


def impression(text: str) -> float:
    """Rate a text as a hasty annotator would: words of praise minus words of blame, and emphasis."""
    words = text.split()
    judging = [word for word in words if word in VALENCE]
    emphasis = sum(word in INTENSIFIERS for word in words)
    return sum(1.0 if praises(word) else -1.0 for word in judging) + _EMPHASIS * emphasis
