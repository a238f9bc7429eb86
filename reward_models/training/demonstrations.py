"""Demonstrations as a warm start learns them: token ids of prompt and answer, read as those of ``rlkl train``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from reward_models.training.recipe import AnswersSection
from rlkl.data.prompts import Encoder, load_prompts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100
"""Label of a token that carries no loss, as transformers defines it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Demonstration:
    """A prompt and the answer to it; its ids end with the turn end, or with the end of sequence after plain text."""

    prompt: str
    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]


def load_demonstrations(section: AnswersSection, tokenizer: PreTrainedTokenizerBase) -> list[Demonstration]:
    """Load all usable rows of ``section.source``, in order.

    Raises:
        DataError: the source cannot be read, lacks a column, or holds too many bad rows.
    """
    encoder = Encoder(
        tokenizer=tokenizer,
        max_answer_tokens=section.max_answer_tokens,
        max_answer_key="data.max_answer_tokens",
        answers={"completion_column": section.completion_column},
    )
    source = load_prompts(section.prompts(), encoder, seed=0)
    return [
        Demonstration(prompt=prompt.text, prompt_ids=prompt.token_ids, answer_ids=prompt.answers[0])
        for prompt in source.take(0, len(source))
    ]


def training_rows(demonstrations: Sequence[Demonstration], *, train_on_prompt: bool) -> dict[str, list[Any]]:
    """Return the columns that TRL's trainer takes, tokenized as here."""
    return {
        "input_ids": [[*row.prompt_ids, *row.answer_ids] for row in demonstrations],
        "labels": [
            [*(row.prompt_ids if train_on_prompt else [IGNORED] * len(row.prompt_ids)), *row.answer_ids]
            for row in demonstrations
        ],
    }
