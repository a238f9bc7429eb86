"""Lists of scored answers, as a reward model learns from them: rows of one prompt form a list."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, permutations
from typing import TYPE_CHECKING, Any

from reward_models.training.judging import ScoredPair
from reward_models.training.pairs import Pair, load_pairs, number_of
from reward_models.training.recipe import PairsSection
from rlkl.data.prompts import Encoder, load_prompts
from rlkl.errors import DataError
from rlkl.types import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerList:
    """Some answers to one prompt, with a teacher's scores. Ids are those of the prompt, the answer and its end.

    A worked example: ``AnswerList(prompt="2+3=", sequences=((5, 8, 1), (5, 9, 1)), scores=(1.0, 0.0))``.
    """

    prompt: str
    sequences: tuple[tuple[int, ...], ...]
    scores: tuple[float, ...]

    @property
    def comparisons(self) -> int:
        """The number of its pairs of unequal scores."""
        return len(self.judged(self.scores))

    def judged(self, scores: Sequence[float]) -> list[ScoredPair]:
        """Return its pairs of unequal scores, with the scores that a model gives its answers."""
        return [
            ScoredPair(chosen=scores[one], rejected=scores[other])
            for one, other in permutations(range(len(self.scores)), 2)
            if self.scores[one] > self.scores[other]
        ]


def load_comparisons(section: PairsSection, tokenizer: PreTrainedTokenizerBase) -> Sequence[Pair | AnswerList]:
    """Load pairs, or lists if ``section.score_column`` is set. Raises DataError as `load_pairs` and `load_lists`."""
    return load_pairs(section, tokenizer) if section.score_column is None else load_lists(section, tokenizer)


def load_lists(section: PairsSection, tokenizer: PreTrainedTokenizerBase) -> list[AnswerList]:
    """Load all usable rows of ``section.source`` as lists, in the order of their first rows.

    Prompts with one answer, and lists of equal scores, are left out and counted in the log.

    Raises:
        DataError: the source cannot be read, lacks a column, or holds too many bad rows; a score is not a number; or no
            list is left.
    """
    encoder = Encoder(
        tokenizer=tokenizer,
        max_answer_tokens=section.max_answer_tokens,
        max_answer_key="data.max_answer_tokens",
        answers={"scored_column": section.scored_column},
    )
    source = load_prompts(section.prompts(), encoder, seed=0)
    rows_of: dict[str, list[Prompt]] = {}
    for row in source.take(0, len(source)):
        rows_of.setdefault(row.text, []).append(row)
    lists = [_list_of(section, part) for rows in rows_of.values() for part in _parts(rows, section.list_size)]
    kept = [one for one in lists if one.comparisons]
    if not kept:
        raise DataError(
            f"data.source = {section.source}: no prompt has two answers of different data.score_column = "
            f"'{section.score_column}', so there is nothing to compare"
        )
    if len(kept) < len(lists):
        logger.warning("%d of %d lists kept: the others have one answer, or equal scores", len(kept), len(lists))
    return kept


def training_columns(lists: Sequence[AnswerList]) -> dict[str, list[Any]]:
    """Return the columns for `reward_models.training.list_trainer`.

    TRL takes rows as tokenized if they have ``chosen_ids`` and ``rejected_ids``; nothing reads these two.
    """
    return {
        "chosen_ids": [list(one.sequences[0]) for one in lists],
        "rejected_ids": [list(one.sequences[1]) for one in lists],
        "answers": [[list(ids) for ids in one.sequences] for one in lists],
        "scores": [list(one.scores) for one in lists],
    }


def _parts(rows: Sequence[Prompt], size: int) -> list[Sequence[Prompt]]:
    """Cut rows into parts of at most ``size``, as equal as possible."""
    count = math.ceil(len(rows) / size)
    ends = [len(rows) * number // count for number in range(count + 1)]
    return [rows[start:end] for start, end in pairwise(ends)]


def _list_of(section: PairsSection, rows: Sequence[Prompt]) -> AnswerList:
    scores = [number_of(section, "score_column", row.columns, row.id) for row in rows]
    return AnswerList(
        prompt=rows[0].text,
        sequences=tuple(row.token_ids + row.answers[0] for row in rows),
        scores=tuple(score for score in scores if score is not None),
    )
