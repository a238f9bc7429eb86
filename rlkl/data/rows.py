"""From one row of a data source to one tokenized prompt, with its pictures and answers."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlkl.data.answers import AnswerEncoder, encode_plain
from rlkl.data.chat import EncodedPrompt, checked_messages, refuse_surrogates, render
from rlkl.data.images import BadImage, read_image
from rlkl.data.report import BadPrompt
from rlkl.errors import DataError
from rlkl.recipe import DataSection
from rlkl.types import Image, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from rlkl.data.vision import PictureProcessor

PICTURE_MARK = "<image>"
"""Marks the place of a picture in plain text that becomes a chat message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoder:
    """The tokenizer and the settings that turn a row into token ids."""

    tokenizer: PreTrainedTokenizerBase
    pictures: PictureProcessor | None = None
    """The picture processor of a vision-language model; None for a text model."""
    max_answer_tokens: int = sys.maxsize
    max_answer_key: str = "rollout.max_new_tokens"
    """The recipe key that sets ``max_answer_tokens``."""
    answers: Mapping[str, str] = field(default_factory=dict)
    """Columns of answers by their recipe key; empty: the chosen and the rejected column of the data section."""
    wordings: Mapping[str, str] = field(default_factory=dict)
    """Columns with other wordings of the prompt by their recipe key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowReader:
    """Turns one row into a prompt, its id left open."""

    section: DataSection
    encoder: Encoder
    answers: AnswerEncoder
    answer_columns: tuple[str, ...]

    def prompt(self, row: Mapping[str, Any]) -> Prompt:
        section, encoder = self.section, self.encoder
        prompt = _encode_prompt(row, section, encoder)
        images = _images(row, section, encoder)
        token_ids = prompt.token_ids
        if encoder.pictures is not None:
            token_ids = _with_image_tokens(token_ids, images, encoder.pictures)
        if len(token_ids) > section.max_prompt_tokens:
            raise BadPrompt("too_long", f"{len(token_ids)} tokens")
        return Prompt(
            id="",
            text=prompt.text,
            token_ids=token_ids,
            columns={name: value for name, value in row.items() if name != section.image_column},
            answers=self._answers(row, prompt),
            images=images,
            wordings=self._wordings(row, images),
        )

    def _wordings(self, row: Mapping[str, Any], images: tuple[Image, ...]) -> dict[str, tuple[int, ...]]:
        """Return the row's other wordings by their columns, encoded as its prompt is."""
        found: dict[str, tuple[int, ...]] = {}
        for key, column in self.encoder.wordings.items():
            if images:
                raise DataError(f"{key} = '{column}' is for prompts of text alone, and a prompt has a picture")
            section = self.section.model_copy(update={"prompt_column": column})
            token_ids = _encode_prompt(row, section, self.encoder).token_ids
            if len(token_ids) > section.max_prompt_tokens:
                raise BadPrompt("too_long", f"'{column}' has {len(token_ids)} tokens")
            found[column] = token_ids
        return found

    def _answers(self, row: Mapping[str, Any], prompt: EncodedPrompt) -> tuple[tuple[int, ...], ...]:
        """Return the row's answers, in the order of their columns, as a sampler would have returned them."""
        limit = self.encoder.max_answer_tokens
        encoded = []
        for column in self.answer_columns:
            token_ids = self.answers.encode(prompt, row.get(column), column)
            if len(token_ids) > limit:
                raise BadPrompt("too_long", f"'{column}' has {len(token_ids)} tokens, more than {limit}")
            encoded.append(token_ids)
        if len(encoded) > len(set(encoded)):
            raise BadPrompt("malformed", "both answers are the same")
        return tuple(encoded)


@dataclass(frozen=True, slots=True, kw_only=True)
class RowChecker:
    """Checks one row as far as no tokenizer is needed, and turns it into a prompt without token ids."""

    section: DataSection

    def prompt(self, row: Mapping[str, Any]) -> Prompt:
        value = _prompt_value(row, self.section)
        if isinstance(value, list):
            messages = checked_messages(value, with_pictures=True)
            text = "\n".join(str(message["content"]) for message in messages)
        else:
            text = _plain_text(value, self.section)
        columns = {name: value for name, value in row.items() if name != self.section.image_column}
        return Prompt(id="", text=text, token_ids=(), columns=columns)


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
    """Repeat each picture's placeholder for each of its tokens; return the ids."""
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


def _prompt_value(row: Mapping[str, Any], section: DataSection) -> str | list[Any]:
    """Return a row's prompt as text or as chat messages; raise `BadPrompt` if it is neither."""
    column = section.prompt_column
    if column not in row:
        raise BadPrompt("malformed", f"no column '{column}'")
    value = row[column]
    if value is None:
        raise BadPrompt("empty", f"'{column}' is null")
    if isinstance(value, str) and section.as_chat and value.strip():
        value = [{"role": "user", "content": _message_parts(value, row.get(section.image_column))}]
    if not isinstance(value, str | list):
        raise BadPrompt("malformed", f"'{column}' is {type(value).__name__}, not text or a list of messages")
    return value


def _encode_prompt(row: Mapping[str, Any], section: DataSection, encoder: Encoder) -> EncodedPrompt:
    value = _prompt_value(row, section)
    if isinstance(value, str):
        prompt = _encode_text(value, section, encoder.tokenizer)
    else:
        prompt = _encode_chat(value, section, encoder)
    if not prompt.token_ids:
        raise BadPrompt("empty", "no tokens")
    return prompt


def _message_parts(text: str, images: Any) -> str | list[dict[str, str]]:
    """Return text and pictures in order, as chat templates of vision-language models take them."""
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


def _encode_text(text: str, section: DataSection, tokenizer: PreTrainedTokenizerBase) -> EncodedPrompt:
    text = _plain_text(text, section)
    return EncodedPrompt(text=text, token_ids=encode_plain(tokenizer, text))


def _plain_text(text: str, section: DataSection) -> str:
    """Return a prompt of plain text; raise `BadPrompt` if it is blank or not valid Unicode."""
    if section.system_prompt is not None:
        raise DataError(
            f"data.system_prompt needs chat messages, but the column '{section.prompt_column}' of data.source = "
            f"'{section.source}' holds plain text; set data.as_chat, or leave data.system_prompt out"
        )
    if not text.strip():
        raise BadPrompt("empty", "blank text")
    refuse_surrogates(text, f"'{section.prompt_column}'")
    return text


def _encode_chat(messages: list[Any], section: DataSection, encoder: Encoder) -> EncodedPrompt:
    tokenizer = encoder.tokenizer
    if tokenizer.chat_template is None:
        raise DataError(
            f"the column '{section.prompt_column}' of data.source = '{section.source}' holds chat messages, but the "
            f"tokenizer '{tokenizer.name_or_path}' has no chat template; use an instruct model or a plain-text column"
        )
    messages = checked_messages(messages, with_pictures=encoder.pictures is not None)
    if section.system_prompt is not None and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": section.system_prompt}, *messages]
    text = render(tokenizer, messages, section.chat_template_kwargs, generation_prompt=True)
    refuse_surrogates(text, f"'{section.prompt_column}'")
    token_ids = tuple(tokenizer.encode(text, add_special_tokens=False))
    return EncodedPrompt(text=text, token_ids=token_ids, messages=messages)
