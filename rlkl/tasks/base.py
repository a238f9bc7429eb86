"""What a built-in world provides."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol


class Task(Protocol):
    """A small world of its own: rows to train on, a gold reward, and a base model that half knows the answers.

    Implementations are frozen dataclasses: their fields are settings, and their ``repr`` keys the cached base model.
    """

    def rows(self) -> list[dict[str, Any]]:
        """Every row, always in the same order, with the columns ``id``, ``prompt`` and ``answer``."""
        ...

    def reward(self, prompt: str, completion: str, answer: str) -> float:
        """The gold reward of one completion, in [0, 1]."""
        ...

    def build_base_model(self, folder: Path) -> None:
        """Write a Hugging Face folder (model and tokenizer) to ``folder``; the same bytes each time on one machine."""
        ...
