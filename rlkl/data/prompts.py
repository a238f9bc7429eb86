"""From rows to tokenized prompts, with a report on rows left out."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from rlkl.data.answers import AnswerEncoder
from rlkl.data.chat import check_template_kwargs
from rlkl.data.curriculum.buckets import check_buckets
from rlkl.data.prompt_source import PromptSource
from rlkl.data.report import BadPrompt, BadRow, DataReport, Problem
from rlkl.data.rows import Encoder, RowChecker, RowReader
from rlkl.data.sources import Rows, UnreadableRow, read_rows
from rlkl.errors import DataError, did_you_mean
from rlkl.recipe import DataSection
from rlkl.seeds import derive_seed
from rlkl.types import Prompt

if TYPE_CHECKING:
    from rlkl.data.vision import PictureProcessor

__all__ = ["Encoder", "PromptSource", "check_prompts", "choose", "load_prompts"]

logger = logging.getLogger(__name__)

EXAMPLES_PER_PROBLEM = 3
SIZES_CHECKED = 64
"""Picture sizes whose token count is checked before training starts."""


def load_prompts(section: DataSection, encoder: Encoder, *, seed: int) -> PromptSource:
    """Read, check and tokenize every row of ``section.source``.

    Plain text is encoded as the tokenizer does it by default, so a base model sees the beginning-of-sequence token that
    it was trained with; a final end-of-sequence token is removed, because the completion follows. Chat messages go
    through the tokenizer's chat template, which writes its own special tokens, up to the assistant's turn.
    ``section.system_prompt`` goes before the messages of rows without a system message.

    If there are columns of answers, each prompt gets them as the policy would have sampled them: see
    `rlkl.data.answers.AnswerEncoder.encode`. Rows with equal or empty answers, or with one longer than
    ``encoder.max_answer_tokens``, are bad.

    For a vision-language model, each picture in ``section.image_column`` belongs to one placeholder of the prompt, in
    order; the placeholder is repeated for each token that the model sees of the picture. The column itself is not among
    the prompt's columns: rewards get the pictures as ``images``.

    Raises:
        DataError: the source cannot be read, lacks the prompt column, holds too many bad rows or no good one; the
            prompts are chat messages and the tokenizer has no chat template; or there are pictures for a text model.
    """
    rows = read_rows(section)
    answers = encoder.answers or _answer_columns(section)
    _check_columns(section, rows, {**answers, **encoder.wordings})
    check_template_kwargs(encoder.tokenizer, section.chat_template_kwargs)
    reader = RowReader(
        section=section,
        encoder=encoder,
        answers=AnswerEncoder(encoder.tokenizer, section.chat_template_kwargs),
        answer_columns=tuple(answers.values()),
    )
    prompts, report = _read_prompts(rows, reader)
    _refuse_bad_data(
        section,
        report,
        longest_answer=f"{encoder.max_answer_key} (now {encoder.max_answer_tokens})" if answers else None,
    )
    if encoder.pictures is not None:
        _check_token_counts(prompts, encoder.pictures)
    log = logger.info if report.kept == report.total else logger.warning
    log("data.source = %s: %s", section.source, report)
    return PromptSource(prompts, report, shuffle=section.shuffle, seed=seed)


def choose(prompts: Sequence[Prompt], limit: int) -> list[Prompt]:
    """Return at most ``limit`` prompts in order: those whose ids have the smallest hashes, whatever the seed."""
    if len(prompts) <= limit:
        return list(prompts)
    kept = sorted(prompts, key=lambda prompt: derive_seed(0, "eval/limit", prompt.id))[:limit]
    ids = {prompt.id for prompt in kept}
    return [prompt for prompt in prompts if prompt.id in ids]


def check_prompts(
    section: DataSection, answers: Mapping[str, str] = MappingProxyType({})
) -> tuple[list[Prompt], DataReport]:
    """Check the rows of ``section.source`` as far as no tokenizer is needed; return their prompts without token ids.

    ``answers``: further columns that must be there (of answers, of other wordings), by their keys of the recipe. Also
    return the counts of rows that were left out. Raises `DataError` as `load_prompts` does, but for the number of
    tokens, chat templates and pictures.
    """
    rows = read_rows(section)
    _check_columns(section, rows, {**_answer_columns(section), **answers})
    prompts, report = _read_prompts(rows, RowChecker(section=section))
    _refuse_bad_data(section, report, longest_answer=None)
    check_buckets(section, prompts)
    return prompts, report


def _answer_columns(section: DataSection) -> dict[str, str]:
    """Return the columns of the chosen and the rejected answer by their keys of the recipe; empty if there are none."""
    pair = {"data.chosen_column": section.chosen_column, "data.rejected_column": section.rejected_column}
    return {key: column for key, column in pair.items() if column is not None}


def _check_columns(section: DataSection, rows: Rows, answers: Mapping[str, str]) -> None:
    named = {"data.prompt_column": section.prompt_column, **answers}
    if section.curriculum is not None and section.curriculum.bucket_column is not None:
        named["data.curriculum.bucket_column"] = section.curriculum.bucket_column
    for key, column in named.items():
        if rows.columns and column not in rows.columns:
            raise DataError(
                f"{key} = '{column}' is not a column of data.source = '{section.source}'; "
                f"{did_you_mean(column, rows.columns)}"
            )


def _check_token_counts(prompts: Sequence[Prompt], pictures: PictureProcessor) -> None:
    """Cut a picture of each size, of the first sizes, and count its tokens; raises `DataError` that names the row.

    The others are counted when they are first cut, before the step that they are for.
    """
    sizes: set[tuple[int, int]] = set()
    for prompt in prompts:
        new = {(image.width, image.height) for image in prompt.images} - sizes
        if new:
            pictures.of_prompt(prompt)
            sizes |= new
        if len(sizes) >= SIZES_CHECKED:
            return


def _read_prompts(rows: Rows, reader: RowReader | RowChecker) -> tuple[list[Prompt], DataReport]:
    kept: list[tuple[int, Prompt]] = []
    counts: Counter[Problem] = Counter()
    examples: list[BadRow] = []
    for number, row in rows.numbered:
        try:
            if isinstance(row, UnreadableRow):
                raise BadPrompt("malformed", row.reason)
            prompt = reader.prompt(row)
        except BadPrompt as bad:
            counts[bad.problem] += 1
            if counts[bad.problem] <= EXAMPLES_PER_PROBLEM:
                examples.append(BadRow(row=number, problem=bad.problem, detail=bad.detail))
        else:
            kept.append((number, prompt))
    ids = _prompt_ids([(number, prompt.columns) for number, prompt in kept])
    prompts = [replace(prompt, id=prompt_id) for prompt_id, (_, prompt) in zip(ids, kept, strict=True)]
    report = DataReport(
        total=len(kept) + counts.total(),
        kept=len(kept),
        empty=counts["empty"],
        malformed=counts["malformed"],
        too_long=counts["too_long"],
        image=counts["image"],
        examples=tuple(examples),
    )
    return prompts, report


def _prompt_ids(rows: Sequence[tuple[int, Mapping[str, Any]]]) -> list[str]:
    """Return the ``id`` column if every row has a unique one, else ``row-<number>``, counted from 0."""
    given = [row["id"] for _, row in rows if isinstance(row.get("id"), (str, int))]
    ids = [name for name in map(str, given) if name.isascii() or _is_unicode(name)]
    if len(ids) == len(rows) and len(set(ids)) == len(ids):
        return ids
    if given:
        logger.warning(
            "the column 'id' is missing in some rows, repeats, or is not valid Unicode; prompts are called "
            "row-<number> instead"
        )
    return [f"row-{number}" for number, _ in rows]


def _is_unicode(text: str) -> bool:
    return text.encode(errors="replace").decode() == text


def _refuse_bad_data(section: DataSection, report: DataReport, *, longest_answer: str | None) -> None:
    if report.kept and report.bad_fraction <= section.max_bad_fraction:
        return
    if not report.total:
        raise DataError(
            f"data.source = '{section.source}' has no rows: expected one or more with a column "
            f"'{section.prompt_column}' (data.prompt_column)"
        )
    mend = "Mend the rows"
    if report.malformed and section.source.endswith(".jsonl"):
        mend += " (a .jsonl file holds one JSON object a line, in UTF-8)"
    raise DataError(
        f"data.source = '{section.source}': {report}. At most data.max_bad_fraction = {section.max_bad_fraction} of "
        f"the rows may be left out, and one must be kept. {mend}, point data.prompt_column (now "
        f"'{section.prompt_column}') elsewhere, raise data.max_prompt_tokens (now {section.max_prompt_tokens}), "
        f"{'' if longest_answer is None else f'raise {longest_answer}, '}or raise data.max_bad_fraction"
    )
