"""From rows to tokenized prompts, with every row accounted for."""

from __future__ import annotations

import hashlib
import logging
import random
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlkl.data.fingerprints import column_fingerprints
from rlkl.data.images import BadImage, read_image
from rlkl.data.report import BadPrompt, BadRow, DataReport, Problem
from rlkl.data.sources import Rows, UnreadableRow, read_rows
from rlkl.errors import DataError, did_you_mean
from rlkl.recipe import DataSection
from rlkl.seeds import derive_seed
from rlkl.types import Image, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from rlkl.data.vision import PictureProcessor

logger = logging.getLogger(__name__)

EXAMPLES_PER_PROBLEM = 3
PICTURE_MARK = "<image>"
"""Where a picture stands in plain text that becomes a chat message."""
SIZES_CHECKED = 64
"""Picture sizes whose token count is checked before training starts."""


class PromptSource:
    """Tokenized prompts, drawn by position: what a draw returns depends on nothing but the arguments."""

    def __init__(self, prompts: Sequence[Prompt], report: DataReport, *, shuffle: bool, seed: int) -> None:
        self.report = report
        self._prompts = tuple(prompts)
        self._shuffle = shuffle
        self._seed = seed
        self._order_of: tuple[int, Sequence[int]] = (-1, ())
        self._fingerprint: str | None = None

    def __len__(self) -> int:
        return len(self._prompts)

    @property
    def fingerprint(self) -> str:
        """Hash of every prompt's id, tokens and pictures, answers included, in order."""
        if self._fingerprint is None:
            digest = hashlib.blake2b(digest_size=8)
            for prompt in self._prompts:
                keys = [image.key for image in prompt.images]
                digest.update(repr((prompt.id, prompt.token_ids, prompt.answers, *([keys] if keys else []))).encode())
            self._fingerprint = digest.hexdigest()
        return self._fingerprint

    def column_fingerprints(self) -> dict[str, str]:
        """Hash the values of each column that rewards can read, by its name."""
        return column_fingerprints(prompt.columns for prompt in self._prompts)

    @property
    def images_per_prompt(self) -> int:
        """The most pictures that a prompt has."""
        return max(len(prompt.images) for prompt in self._prompts)

    def take(self, position: int, count: int) -> list[Prompt]:
        """The prompts number ``position`` to ``position + count - 1`` of an endless stream of epochs.

        Each epoch holds every prompt once, in an order of its own when shuffled. A draw may span epochs, and then may
        hold a prompt twice.
        """
        return [self._at(number) for number in range(position, position + count)]

    def _at(self, number: int) -> Prompt:
        epoch, index = divmod(number, len(self._prompts))
        return self._prompts[self._order(epoch)[index]]

    def _order(self, epoch: int) -> Sequence[int]:
        if not self._shuffle:
            return range(len(self._prompts))
        if self._order_of[0] != epoch:  # kept because neighbouring draws ask for the same epoch
            order = list(range(len(self._prompts)))
            random.Random(derive_seed(self._seed, "data", epoch)).shuffle(order)
            self._order_of = (epoch, order)
        return self._order_of[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoder:
    """What turns a row into token ids."""

    tokenizer: PreTrainedTokenizerBase
    pictures: PictureProcessor | None = None
    """Of a vision-language model."""
    max_answer_tokens: int = sys.maxsize


def load_prompts(section: DataSection, encoder: Encoder, *, seed: int) -> PromptSource:
    """Read, check and tokenize every row of ``section.source``.

    Plain text is encoded as the tokenizer does it by default, so a base model sees the beginning-of-sequence token that
    it was trained with; a closing end-of-sequence token is taken off, since the completion follows. Chat messages go
    through the tokenizer's chat template, which writes its own special tokens, up to the assistant's turn.
    ``section.system_prompt`` goes before the messages of rows that bring no system message of their own.

    Where ``section`` names columns of answers, each prompt gets both: the text (of a list of messages, the last one's)
    encoded as a continuation, and the end-of-sequence token. Rows whose answers are the same, empty, or longer than
    ``encoder.max_answer_tokens`` are bad.

    For a vision-language model, each picture in ``section.image_column`` belongs to one placeholder of the prompt, in
    order; the placeholder is repeated for each token that the model sees of the picture. The column itself is not among
    the prompt's columns: rewards get the pictures as ``images``.

    Raises:
        DataError: the source cannot be read, lacks the prompt column, holds too many bad rows or no good one; the
            prompts are chat messages and the tokenizer has no chat template; or there are pictures for a text model.
    """
    rows = read_rows(section)
    for key in ("prompt_column", "chosen_column", "rejected_column"):
        column = getattr(section, key)
        if rows.columns and column is not None and column not in rows.columns:
            raise DataError(
                f"data.{key} = '{column}' is not a column of data.source = '{section.source}'; "
                f"{did_you_mean(column, rows.columns)}"
            )
    prompts, report = _tokenize_rows(rows, section, encoder)
    _refuse_bad_data(section, report)
    if encoder.pictures is not None:
        _check_token_counts(prompts, encoder.pictures)
    log = logger.info if report.kept == report.total else logger.warning
    log("data.source = %s: %s", section.source, report)
    return PromptSource(prompts, report, shuffle=section.shuffle, seed=seed)


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


def _tokenize_rows(rows: Rows, section: DataSection, encoder: Encoder) -> tuple[list[Prompt], DataReport]:
    kept: list[tuple[int, Prompt]] = []
    counts: Counter[Problem] = Counter()
    examples: list[BadRow] = []
    for number, row in rows.numbered:
        try:
            if isinstance(row, UnreadableRow):
                raise BadPrompt("malformed", row.reason)
            prompt = _prompt(row, section, encoder)
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
    """The ``id`` column where every row has one and no two are the same, else the rows' numbers."""
    given = [row["id"] for _, row in rows if isinstance(row.get("id"), (str, int))]
    ids = list(map(str, given))
    if len(ids) == len(rows) and len(set(ids)) == len(ids):
        return ids
    if given:
        logger.warning("the column 'id' is missing in some rows or repeats; prompts are called row-<number> instead")
    return [f"row-{number}" for number, _ in rows]


def _refuse_bad_data(section: DataSection, report: DataReport) -> None:
    if report.kept and report.bad_fraction <= section.max_bad_fraction:
        return
    if not report.total:
        raise DataError(f"data.source = '{section.source}' has no rows")
    raise DataError(
        f"data.source = '{section.source}': {report}. At most data.max_bad_fraction = {section.max_bad_fraction} of "
        "the rows may be left out, and one must be kept. Mend the rows, point data.prompt_column (now "
        f"'{section.prompt_column}') elsewhere, raise data.max_prompt_tokens (now {section.max_prompt_tokens}), or "
        "raise data.max_bad_fraction"
    )


def _prompt(row: Mapping[str, Any], section: DataSection, encoder: Encoder) -> Prompt:
    """A row's prompt, its id left open."""
    text, token_ids = _tokenize(row, section, encoder.tokenizer)
    images = _images(row, section, encoder)
    if encoder.pictures is not None:
        token_ids = _with_image_tokens(token_ids, images, encoder.pictures)
    if len(token_ids) > section.max_prompt_tokens:
        raise BadPrompt("too_long", f"{len(token_ids)} tokens")
    return Prompt(
        id="",
        text=text,
        token_ids=token_ids,
        columns={name: value for name, value in row.items() if name != section.image_column},
        answers=_tokenize_answers(row, section, encoder) if section.has_pairs else (),
        images=images,
    )


def _images(row: Mapping[str, Any], section: DataSection, encoder: Encoder) -> tuple[Image, ...]:
    value = row.get(section.image_column)
    values = value if isinstance(value, list | tuple) else [value]
    values = [value for value in values if value is not None]
    if values and encoder.pictures is None:
        raise DataError(
            f"the column '{section.image_column}' of data.source = '{section.source}' holds pictures, but the model "
            "has no vision tower; take a vision-language model, or name another column with data.image_column"
        )
    folder = Path(section.source).expanduser().parent
    try:
        return tuple(read_image(value, folder) for value in values)
    except BadImage as error:
        raise BadPrompt("image", f"'{section.image_column}': a picture {error}") from error


def _with_image_tokens(
    token_ids: tuple[int, ...], images: tuple[Image, ...], pictures: PictureProcessor
) -> tuple[int, ...]:
    """The ids with each picture's placeholder repeated for each of its tokens."""
    mentioned = token_ids.count(pictures.image_token_id)
    if mentioned != len(images):
        raise BadPrompt("image", f"the prompt mentions {mentioned} pictures and the row has {len(images)}")
    try:
        counts = iter([pictures.token_count(image) for image in images])
    except ValueError as error:  # too long and thin to be cut
        raise BadPrompt("image", f"a picture that the model cannot take ({error})") from error
    return tuple(
        repeated
        for token in token_ids
        for repeated in [token] * (next(counts) if token == pictures.image_token_id else 1)
    )


def _tokenize(
    row: Mapping[str, Any], section: DataSection, tokenizer: PreTrainedTokenizerBase
) -> tuple[str, tuple[int, ...]]:
    column = section.prompt_column
    if column not in row:
        raise BadPrompt("malformed", f"no column '{column}'")
    value = row[column]
    if value is None:
        raise BadPrompt("empty", f"'{column}' is null")
    if isinstance(value, str) and section.as_chat and value.strip():
        value = [{"role": "user", "content": _message_parts(value, row.get(section.image_column))}]
    if isinstance(value, str):
        text, token_ids = _encode_text(value, section, tokenizer)
    elif isinstance(value, list):
        text, token_ids = _encode_chat(value, section, tokenizer)
    else:
        raise BadPrompt("malformed", f"'{column}' is {type(value).__name__}, not text or a list of messages")
    if not token_ids:
        raise BadPrompt("empty", "no tokens")
    return text, token_ids


def _message_parts(text: str, images: Any) -> str | list[dict[str, str]]:
    """Text and pictures in order, as chat templates of vision-language models take them."""
    count = len(images) if isinstance(images, list | tuple) else int(images is not None)
    if not count:
        return text
    if PICTURE_MARK not in text:
        return [{"type": "image"}] * count + [{"type": "text", "text": text}]
    parts: list[dict[str, str]] = []
    for number, piece in enumerate(text.split(PICTURE_MARK)):
        parts += [{"type": "image"}] if number else []
        parts += [{"type": "text", "text": piece}] if piece else []
    return parts


def _tokenize_answers(row: Mapping[str, Any], section: DataSection, encoder: Encoder) -> tuple[tuple[int, ...], ...]:
    """Chosen, then rejected, as a sampler would have returned them."""
    answers = []
    tokenizer = encoder.tokenizer
    stop = tokenizer.eos_token_id
    assert isinstance(stop, int), "a tokenizer without an end-of-sequence token is refused before data are read"
    for column in (section.chosen_column, section.rejected_column):
        assert column is not None
        token_ids = tokenizer.encode(_answer_text(row.get(column), column), add_special_tokens=False)
        if token_ids[-1:] != [stop]:
            token_ids.append(stop)
        if len(token_ids) == 1:
            raise BadPrompt("empty", f"'{column}' has no tokens")
        if len(token_ids) > encoder.max_answer_tokens:
            raise BadPrompt("too_long", f"'{column}' has {len(token_ids)} tokens")
        answers.append(tuple(token_ids))
    if answers[0] == answers[1]:
        raise BadPrompt("malformed", "both answers are the same")
    return tuple(answers)


def _answer_text(value: Any, column: str) -> str:
    if isinstance(value, list):
        message = value[-1] if value else None
        if not isinstance(message, dict) or message.get("role") != "assistant":
            raise BadPrompt("malformed", f"'{column}' does not end with a message of the assistant")
        value = message.get("content")
    if value is None:
        raise BadPrompt("empty", f"'{column}' is null")
    if not isinstance(value, str):
        raise BadPrompt("malformed", f"'{column}' is {type(value).__name__}, not text or a list of messages")
    return value


def _encode_text(text: str, section: DataSection, tokenizer: PreTrainedTokenizerBase) -> tuple[str, tuple[int, ...]]:
    if section.system_prompt is not None:
        raise DataError(
            f"data.system_prompt needs chat messages, but the column '{section.prompt_column}' of data.source = "
            f"'{section.source}' holds plain text; set data.as_chat, or leave data.system_prompt out"
        )
    if not text.strip():
        raise BadPrompt("empty", "blank text")
    has_bos = isinstance(tokenizer.bos_token, str) and text.startswith(tokenizer.bos_token)
    token_ids = tokenizer.encode(text, add_special_tokens=not has_bos)
    if token_ids and token_ids[-1] == tokenizer.eos_token_id:
        token_ids = token_ids[:-1]
    return text, tuple(token_ids)


def _encode_chat(
    messages: list[Any], section: DataSection, tokenizer: PreTrainedTokenizerBase
) -> tuple[str, tuple[int, ...]]:
    from jinja2 import TemplateError

    if tokenizer.chat_template is None:
        raise DataError(
            f"the column '{section.prompt_column}' of data.source = '{section.source}' holds chat messages, but the "
            f"tokenizer '{tokenizer.name_or_path}' has no chat template; use an instruct model or a plain-text column"
        )
    messages = _checked_messages(messages)
    if section.system_prompt is not None and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": section.system_prompt}, *messages]
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except TemplateError as error:
        raise BadPrompt("malformed", f"the chat template refuses the messages: {error}") from error
    assert isinstance(text, str)
    return text, tuple(tokenizer.encode(text, add_special_tokens=False))


def _checked_messages(messages: list[Any]) -> list[dict[str, Any]]:
    """The messages without null fields (parquet fills absent ones so). Content is text or a list of parts."""
    for number, message in enumerate(messages):
        is_message = isinstance(message, dict) and isinstance(message.get("role"), str)
        if not is_message or not isinstance(message.get("content"), (str, list)):
            raise BadPrompt("malformed", f"message {number} is not {{'role': ..., 'content': ...}}")
    if not messages or not any(message["content"] for message in messages if message["role"] != "system"):
        raise BadPrompt("empty", "no message says anything")
    if messages[-1]["role"] == "assistant":
        raise BadPrompt("malformed", "the last message is the assistant's, so the answer is already given")
    return [_without_nulls(message) for message in messages]


def _without_nulls(message: dict[str, Any]) -> dict[str, Any]:
    """The message, and the parts of its content, without null fields."""
    kept = {key: value for key, value in message.items() if value is not None}
    if isinstance(kept.get("content"), list):
        kept["content"] = [_without_nulls(part) if isinstance(part, dict) else part for part in kept["content"]]
    return kept
