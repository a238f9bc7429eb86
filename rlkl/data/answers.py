"""Encode given answers as the policy would have sampled them, up to the token that ends the answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rlkl.data.chat import EncodedPrompt, Message, checked_message, has_content, refuse_surrogates, render
from rlkl.data.report import BadPrompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_QUESTION, _ANSWER = "rlkl-question", "rlkl-answer"


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnEnd:
    """The end of the assistant's turn in a chat template, for example ``<|im_end|>``."""

    text: str
    """The text that follows an answer, up to and including the stop token."""
    stop_id: int
    opening: str
    """The text that opens the assistant's turn, without white space around it; empty for a template without one."""

    def is_open_in(self, text: str) -> bool:
        """Return whether a rendered text ends inside the assistant's turn, so that its continuation is an answer."""
        return bool(self.opening) and text.rfind(self.opening) > text.rfind(self.text)


def find_turn_end(tokenizer: PreTrainedTokenizerBase, template_kwargs: Mapping[str, Any]) -> TurnEnd | None:
    """Find the turn end by rendering a conversation: the first control token after the assistant's content.

    Text after that token, such as ChatML's newline, is not part of it: a sampler stops before it. None if the tokenizer
    has no chat template, or if the template writes no control token after an answer; answers then end with the
    end-of-sequence token.
    """
    if tokenizer.chat_template is None:
        return None
    ask: list[Message] = [{"role": "user", "content": _QUESTION}]
    try:
        asked = render(tokenizer, ask, template_kwargs, generation_prompt=True)
        answered = render(
            tokenizer, [*ask, {"role": "assistant", "content": _ANSWER}], template_kwargs, generation_prompt=False
        )
    except BadPrompt:  # the template wants more than a question and its answer
        return None
    _, found, after = answered.rpartition(_ANSWER)
    control = _control_ids(tokenizer)
    stop_id = next((i for i in tokenizer.encode(after, add_special_tokens=False) if found and i in control), None)
    if stop_id is None:
        return None
    before, token, _ = after.partition(str(tokenizer.convert_ids_to_tokens(stop_id)))
    opening = asked.rpartition(_QUESTION)[2].rpartition(before + token)[2].strip()
    return TurnEnd(text=before + token, stop_id=stop_id, opening=opening) if token else None


def _control_ids(tokenizer: Any) -> set[int]:
    """Return the special tokens and the added tokens, without beginning-of-sequence and unknown tokens.

    Some chat models add their turn end as an ordinary token.
    """
    ids = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    return (ids - {tokenizer.bos_token_id, tokenizer.unk_token_id}) | {tokenizer.eos_token_id}


class AnswerEncoder:
    """Encodes answers of one tokenizer and one set of template arguments."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template_kwargs: Mapping[str, Any]) -> None:
        self._tokenizer: Any = tokenizer
        self._template_kwargs = template_kwargs
        self._turn_end = find_turn_end(tokenizer, template_kwargs)

    def encode(self, prompt: EncodedPrompt, value: Any, column: str) -> tuple[int, ...]:
        """Encode an answer (text, or messages that end with the assistant's) as the continuation of its prompt.

        After chat messages the answer is what the chat template writes for it, up to the turn end. If the template
        writes the prompt differently once the answer is there, it is the content followed by the turn end. After plain
        text the answer ends with the end-of-sequence token, or with the turn end if the text itself opens an
        assistant's turn.

        Raises:
            BadPrompt: there is no answer, it has another form, or it is empty.
        """
        message = _answer(value, column)
        body = self._body(prompt, message, column)
        refuse_surrogates(body, f"'{column}'")
        token_ids = self.encode_sampled(prompt, body)
        if len(token_ids) == 1 or not body:
            raise BadPrompt("empty", f"'{column}' has no tokens")
        return token_ids

    def encode_sampled(self, prompt: EncodedPrompt, text: str) -> tuple[int, ...]:
        """Encode a text that the policy itself sampled: the text as it is, and the end that `encode` describes."""
        end = self._end(prompt)
        if end is not None:
            return self._continuation(prompt, text.removesuffix(end.text) + end.text)
        token_ids, eos = self._continuation(prompt, text), self._tokenizer.eos_token_id
        return token_ids if eos is None or token_ids[-1:] == (eos,) else (*token_ids, eos)

    def _end(self, prompt: EncodedPrompt) -> TurnEnd | None:
        end = self._turn_end
        is_chat = end is not None and (prompt.messages is not None or end.is_open_in(prompt.text))
        return end if is_chat else None

    def _body(self, prompt: EncodedPrompt, message: Message, column: str) -> str:
        """Return the answer's text after the prompt, without the turn end."""
        if prompt.messages is not None:
            messages = [*prompt.messages, message]
            whole = render(self._tokenizer, messages, self._template_kwargs, generation_prompt=False)
            if whole.startswith(prompt.text):
                written = whole[len(prompt.text) :]
                last = message["content"].strip() if self._turn_end is None else self._turn_end.text
                if last and last in written:
                    cut = written.rindex(last)
                    return written[:cut] + (last if self._turn_end is None else "")
        if not message["content"]:
            raise BadPrompt("malformed", f"'{column}' has tool calls, and the prompt's form cannot show them")
        return message["content"]

    def _continuation(self, prompt: EncodedPrompt, text: str) -> tuple[int, ...]:
        """Return the ids of a text that follows the prompt.

        Both are encoded together, unless a token then spans the two.
        """
        if prompt.messages is None:
            joint = encode_plain(self._tokenizer, prompt.text + text)
        else:
            joint = tuple(self._tokenizer.encode(prompt.text + text, add_special_tokens=False))
        size = len(prompt.token_ids)
        eos = self._tokenizer.eos_token
        is_whole = eos is None or not prompt.text.endswith(eos)  # else the prompt's ids lack this token
        is_known = prompt.token_ids[-1:] != (self._tokenizer.unk_token_id,)  # the unknown token may be any text
        if size and is_whole and is_known and joint[:size] == tuple(prompt.token_ids):
            return joint[size:]
        return tuple(self._tokenizer.encode(text, add_special_tokens=False))


def encode_plain(tokenizer: Any, text: str) -> tuple[int, ...]:
    """Encode plain text as the tokenizer does by default, with at most one beginning and no end of sequence."""
    has_bos = isinstance(tokenizer.bos_token, str) and text.startswith(tokenizer.bos_token)
    token_ids = tokenizer.encode(text, add_special_tokens=not has_bos)
    if token_ids and token_ids[-1] == tokenizer.eos_token_id:
        token_ids = token_ids[:-1]
    return tuple(token_ids)


def _answer(value: Any, column: str) -> Message:
    """Return the assistant's message that a column holds, with its content as text."""
    if isinstance(value, list):
        value = value[-1] if value else None
        if not isinstance(value, dict) or value.get("role") != "assistant":
            raise BadPrompt("malformed", f"'{column}' does not end with a message of the assistant")
        if value.get("content") is None and not any(value.get(key) for key in ("tool_calls", "function_call")):
            raise BadPrompt("empty", f"'{column}' is null")
        message = checked_message(value, f"'{column}'", with_pictures=False)
    elif value is None:
        raise BadPrompt("empty", f"'{column}' is null")
    elif isinstance(value, str):
        message = {"role": "assistant", "content": value}
    else:
        raise BadPrompt("malformed", f"'{column}' is {type(value).__name__}, not text or a list of messages")
    if not has_content(message):
        raise BadPrompt("empty", f"'{column}' has no tokens")
    return message
