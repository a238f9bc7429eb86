"""Stop texts (``rollout.stop``): find in sampled tokens where a completion ends, and cut it from the completion's text.

Engines and the loop decode in one way, so that the text which ends a completion is the text that is cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def decode(tokenizer: Any, token_ids: Sequence[Sequence[int]]) -> list[str]:
    """Decode completions to texts without special tokens."""
    return tokenizer.batch_decode([list(ids) for ids in token_ids], skip_special_tokens=True)


def cut_at_stop(text: str, stop: Sequence[str]) -> str:
    """Return the part of the text before the first of the stop texts; all of it if there is none.

    >>> cut_at_stop("4. Next: 5", ["Next", "4."])
    ''
    """
    return text[: min((place for s in stop if (place := text.find(s)) >= 0), default=len(text))]


class CompletionTexts:
    """Decodes completions for rewards: without special tokens, the turn end, and what follows a stop text."""

    def __init__(self, tokenizer: Any, *, turn_end_id: int | None, stop: Sequence[str]) -> None:
        """Set how completions are decoded.

        ``turn_end_id`` is an id that may end a completion and is no special token, so that decoding would keep it.
        """
        self._tokenizer = tokenizer
        self._turn_end_id = turn_end_id
        self._stop = stop

    def __call__(self, token_ids: list[list[int]]) -> list[str]:
        ends = [len(ids) - (ids[-1:] == [self._turn_end_id]) for ids in token_ids]
        texts = decode(self._tokenizer, [ids[:end] for ids, end in zip(token_ids, ends, strict=True)])
        return [cut_at_stop(text, self._stop) for text in texts]


class StopWatch:
    """Watches growing completions for stop texts, whatever tokens these are made of."""

    def __init__(self, tokenizer: Any, stop: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._stop = stop
        self._window = 4 * max(map(len, stop)) + 16
        """Tokens at the end that hold any stop text: a character has at most four."""

    def end(self, token_ids: Sequence[int], watched: int) -> int | None:
        """Return the number of tokens after which the text holds a stop text, or None.

        ``watched``: how many of the tokens earlier calls have seen.
        """
        lengths = range(watched + 1, len(token_ids) + 1)
        return next((length for length in lengths if self._holds(token_ids[:length])), None)

    def _holds(self, token_ids: Sequence[int]) -> bool:
        return self._found(token_ids[-self._window :]) and self._found(token_ids)

    def _found(self, token_ids: Sequence[int]) -> bool:
        (text,) = decode(self._tokenizer, [token_ids])
        return any(stop in text for stop in self._stop)


def stop_watch(model_path: str, stop: Sequence[str]) -> StopWatch | None:
    """Load the model's tokenizer to watch for stop texts; None without any."""
    if not stop:
        return None
    from transformers import AutoTokenizer

    return StopWatch(AutoTokenizer.from_pretrained(model_path, trust_remote_code=False), stop)
