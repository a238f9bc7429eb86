"""The text of each token of a sample, for readers that show numbers token by token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class TokenTexts:
    """Decodes token ids one by one, each different id once."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, str] = {}

    def of(self, token_ids: Sequence[int]) -> list[str]:
        """Return the text of each token, special tokens included.

        A token that is only a part of a character is shown by the sign of an unknown character.
        """
        return [self._text(token) for token in token_ids]

    def _text(self, token: int) -> str:
        if token not in self._known:
            self._known[token] = self._decoded(token).encode("utf-8", errors="replace").decode("utf-8")
        return self._known[token]

    def _decoded(self, token: int) -> str:
        """Decode a token as it reads within a text: some tokenizers take the space off the first one."""
        alone = self._tokenizer.decode([token])
        return self._tokenizer.decode([token, token])[len(alone) :]
