"""Chat messages: check them and render them with the tokenizer's chat template."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from rlkl.data.report import BadPrompt
from rlkl.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = dict[str, Any]
_CALLS = ("tool_calls", "function_call")
"""Fields that a message may have in place of content."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedPrompt:
    """A prompt as text and as token ids, before the placeholders of pictures are repeated."""

    text: str
    token_ids: tuple[int, ...]
    messages: Sequence[Message] | None = None
    """The messages that the text was rendered from; None for plain text."""


def render(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    template_kwargs: Mapping[str, Any],
    *,
    generation_prompt: bool,
) -> str:
    """Render messages with the tokenizer's chat template.

    Raises:
        BadPrompt: the template refuses the messages, or fails on them.
    """
    from jinja2 import TemplateError

    try:
        text = tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=generation_prompt, **template_kwargs
        )
    except (TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
        # A template is a program: on messages of a form that it does not know, it fails with any of these.
        raise BadPrompt("malformed", f"the chat template refuses the messages: {error}") from error
    assert isinstance(text, str)
    return text


def check_template_kwargs(tokenizer: PreTrainedTokenizerBase, template_kwargs: Mapping[str, Any]) -> None:
    """Raise `DataError` if the chat template reads no variable of such a name, since it would ignore the argument."""
    if tokenizer.chat_template is None:
        return
    known = {*re.findall(r"[A-Za-z_]\w*", str(tokenizer.chat_template)), "tools", "documents"}
    for name in template_kwargs.keys() - known:
        near = get_close_matches(name, known, n=1)
        raise DataError(
            f"data.chat_template_kwargs.{name}: the chat template of '{tokenizer.name_or_path}' reads no variable of "
            f"this name; {f'did you mean {near[0]!r}?' if near else 'leave it out'}"
        )


def checked_messages(messages: Sequence[Any], *, with_pictures: bool) -> list[Message]:
    """Return the messages of a prompt in the form that chat templates take. See `checked_message`.

    Raises:
        BadPrompt: a message has another form, none has content, or the last one is the assistant's.
    """
    checked = [checked_message(message, f"message {n}", with_pictures) for n, message in enumerate(messages, 1)]
    if not any(has_content(message) for message in checked if message["role"] != "system"):
        raise BadPrompt("empty", "no message has content")
    if checked[-1]["role"] == "assistant":
        raise BadPrompt("malformed", "the last message is the assistant's, so the answer is already given")
    return checked


def checked_message(message: Any, name: str, with_pictures: bool) -> Message:
    """Return a message without null fields, which parquet writes for absent ones.

    Content in parts that are all text (``[{"type": "text", "text": ...}]``) becomes one text, which every template
    takes. A message with tool calls may have null content; it becomes an empty text.

    Raises:
        BadPrompt: it is no message, or it holds something other than text and the model has no pictures.
    """
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise BadPrompt("malformed", f"{name} is not {{'role': ..., 'content': ...}}")
    kept = {key: value for key, value in message.items() if value is not None}
    calls = any(kept.get(key) for key in _CALLS)
    content = kept.get("content", "" if calls else None)
    if isinstance(content, list):
        content = _checked_parts(content, name, with_pictures)
    if not isinstance(content, str | list):
        found = "null" if content is None else f"of type {type(content).__name__}"
        raise BadPrompt("malformed", f"{name} has content that is {found}, not text or a list of parts")
    return {**kept, "content": content}


def has_content(message: Message) -> bool:
    """Return whether a checked message has text, pictures or tool calls."""
    return bool(message["content"]) or any(message.get(key) for key in _CALLS)


def refuse_surrogates(text: str, name: str) -> None:
    """Raise `BadPrompt` if the text is not valid Unicode: no tokenizer encodes half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = f"U+{ord(text[error.start]):04X}"
        raise BadPrompt("malformed", f"{name} has a lone surrogate ({code}), which is not valid Unicode") from error


def _checked_parts(parts: list[Any], name: str, with_pictures: bool) -> str | list[Any]:
    checked = [_checked_part(part, name, with_pictures) for part in parts]
    if all(part["type"] == "text" for part in checked):
        return "".join(part["text"] for part in checked)
    return checked


def _checked_part(part: Any, name: str, with_pictures: bool) -> dict[str, Any]:
    if not isinstance(part, dict) or not isinstance(part.get("type"), str):
        raise BadPrompt("malformed", f"{name} has a part that is not {{'type': ..., ...}}")
    kept = {key: value for key, value in part.items() if value is not None}
    if kept["type"] == "text":
        if not isinstance(kept.get("text"), str):
            raise BadPrompt("malformed", f"{name} has a part of type 'text' without text")
    elif not with_pictures:
        raise BadPrompt("malformed", f"{name} has a part of type '{kept['type']}', and the model takes only text")
    return kept
