"""Preferences as a reward model learns from them: token ids of prompt and answer, read as those of ``rlkl train``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from reward_models.training.judging import ScoredPair
from reward_models.training.recipe import PairsSection
from rlkl.data.prompts import Encoder, load_prompts
from rlkl.errors import DataError, did_you_mean

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """One preference. Ids are those of the prompt, the answer and its end (`rlkl.data.answers`)."""

    prompt: str
    chosen_ids: tuple[int, ...]
    rejected_ids: tuple[int, ...]
    margin: float | None = None
    probability: float | None = None

    @property
    def sequences(self) -> tuple[tuple[int, ...], ...]:
        """The ids of its answers."""
        return (self.chosen_ids, self.rejected_ids)

    @property
    def comparisons(self) -> int:
        """The number of pairs that it is."""
        return 1

    def judged(self, scores: Sequence[float]) -> list[ScoredPair]:
        """Return the pair with a model's scores of its two answers."""
        probability = 1.0 if self.probability is None else self.probability
        return [ScoredPair(chosen=scores[0], rejected=scores[1], probability=probability)]


def load_pairs(section: PairsSection, tokenizer: PreTrainedTokenizerBase) -> list[Pair]:
    """Load all usable rows of ``section.source``, in order.

    Raises:
        DataError: the source cannot be read, lacks a column, or holds too many bad rows; or a margin or a probability
            is not one.
    """
    prompts = section.prompts(chosen_column=section.chosen_column, rejected_column=section.rejected_column)
    encoder = Encoder(
        tokenizer=tokenizer,
        max_answer_tokens=section.max_answer_tokens,
        max_answer_key="data.max_answer_tokens",
    )
    source = load_prompts(prompts, encoder, seed=0)
    pairs = []
    for prompt in source.take(0, len(source)):
        chosen, rejected = prompt.answers
        pairs.append(
            Pair(
                prompt=prompt.text,
                chosen_ids=prompt.token_ids + chosen,
                rejected_ids=prompt.token_ids + rejected,
                margin=number_of(section, "margin_column", prompt.columns, prompt.id),
                probability=number_of(section, "probability_column", prompt.columns, prompt.id),
            )
        )
    _check_probabilities(section, pairs)
    return pairs


def training_rows(pairs: Sequence[Pair]) -> dict[str, list[Any]]:
    """Return the columns that TRL's trainer takes, tokenized as here."""
    columns: dict[str, list[Any]] = {
        "chosen_ids": [list(pair.chosen_ids) for pair in pairs],
        "rejected_ids": [list(pair.rejected_ids) for pair in pairs],
    }
    for name in ("margin", "probability"):
        if getattr(pairs[0], name) is not None:
            columns[name] = [getattr(pair, name) for pair in pairs]
    return columns


def number_of(section: PairsSection, key: str, columns: Mapping[str, Any], row: str) -> float | None:
    """Return the number in a row's column that ``section.key`` names; None if it names none. Raises DataError."""
    column = getattr(section, key)
    if column is None:
        return None
    if column not in columns:
        raise DataError(f"data.{key} = '{column}' is not a column of {row}; {did_you_mean(column, columns)}")
    value = columns[column]
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise DataError(f"data.{key} = '{column}': {row} has {value!r} there, expected a number")
    return float(value)


def _check_probabilities(section: PairsSection, pairs: Sequence[Pair]) -> None:
    outside = [pair.probability for pair in pairs if pair.probability is not None and not 0 <= pair.probability <= 1]
    if outside:
        raise DataError(
            f"data.probability_column = '{section.probability_column}' holds {outside[0]:g}, expected probabilities "
            "from 0 to 1 that the chosen answer is the better one"
        )
