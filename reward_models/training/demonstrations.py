"""Demonstrations as a warm start learns them: token ids of prompt and answer, read as those of ``rlkl train``."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from reward_models.training.recipe import AnswersSection
from rlkl.data.prompts import Encoder, load_prompts
from rlkl.errors import DataError, did_you_mean

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

IGNORED = -100
"""Label of a token that carries no loss, as transformers defines it."""
_EXAMPLES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Demonstration:
    """A prompt and the answer to it, whose ids end with the end of sequence."""

    prompt: str
    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]


def load_demonstrations(section: AnswersSection, tokenizer: PreTrainedTokenizerBase) -> list[Demonstration]:
    """All usable rows of ``section.source``, in order.

    Raises:
        DataError: the source cannot be read, lacks a column, or holds too many bad rows.
    """
    source = load_prompts(section.prompts(), Encoder(tokenizer=tokenizer), seed=0)
    kept, problems = [], []
    for prompt in source.take(0, len(source)):
        if section.completion_column not in prompt.columns:
            raise DataError(
                f"data.completion_column = '{section.completion_column}' is not a column of row {prompt.id}; "
                f"{did_you_mean(section.completion_column, prompt.columns)}"
            )
        text = _text(prompt.columns[section.completion_column])
        answer_ids = _with_stop(tokenizer.encode(text or "", add_special_tokens=False), tokenizer.eos_token_id)
        if text is None:
            problems.append(f"row {prompt.id}: no text, nor messages that end with the assistant's")
        elif len(answer_ids) == 1:
            problems.append(f"row {prompt.id}: empty")
        elif len(answer_ids) > section.max_answer_tokens:
            problems.append(f"row {prompt.id}: {len(answer_ids)} tokens")
        else:
            kept.append(Demonstration(prompt=prompt.text, prompt_ids=prompt.token_ids, answer_ids=answer_ids))
    _refuse_bad_answers(section, problems, rows=len(source))
    return kept


def training_rows(demonstrations: Sequence[Demonstration], *, train_on_prompt: bool) -> dict[str, list[Any]]:
    """The columns that TRL's trainer takes, tokenized as here."""
    return {
        "input_ids": [[*row.prompt_ids, *row.answer_ids] for row in demonstrations],
        "labels": [
            [*(row.prompt_ids if train_on_prompt else [IGNORED] * len(row.prompt_ids)), *row.answer_ids]
            for row in demonstrations
        ],
    }


def _text(value: Any) -> str | None:
    """A text, or that of the last message; None where there is neither."""
    if isinstance(value, list) and value and isinstance(value[-1], dict) and value[-1].get("role") == "assistant":
        value = value[-1].get("content")
    return value if isinstance(value, str) else None


def _with_stop(token_ids: list[int], stop: Any) -> tuple[int, ...]:
    return tuple(token_ids) if token_ids[-1:] == [stop] else (*token_ids, stop)


def _refuse_bad_answers(section: AnswersSection, problems: Sequence[str], *, rows: int) -> None:
    if not problems:
        return
    told = (
        f"data.completion_column = '{section.completion_column}': {len(problems)} of {rows} rows are left out: "
        + "; ".join(problems[:_EXAMPLES])
    )
    if len(problems) == rows or len(problems) > section.max_bad_fraction * rows:
        raise DataError(
            f"{told}. At most data.max_bad_fraction = {section.max_bad_fraction} may be; mend the rows, raise "
            f"data.max_answer_tokens (now {section.max_answer_tokens}), or raise data.max_bad_fraction"
        )
    logger.warning("%s", told)
