"""The interface of a built-in world."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from rlkl.seeds import derive_seed

TEST_SHARE = 5
"""One row in about so many is in the part ``test``."""


def in_test(task: str, row: str) -> bool:
    """Return whether the row with this id is in the part ``test`` of a task that has no test rows of its own."""
    return derive_seed(0, f"{task}/test", row) % TEST_SHARE == 0


class Task(Protocol):
    """A small world of its own: rows to train on, rewards, and a base model that half knows the answers.

    ``task:<name>`` names its rows, its reward or its base model; ``task:<name>/<part>`` names its other parts.
    Implementations are frozen dataclasses: their fields are settings, and their ``repr`` keys the cached base model.
    """

    def rows(self) -> list[dict[str, Any]]:
        """Return every row, always in the same order, with ``id``, ``prompt`` and the columns that its rewards read."""
        ...

    @property
    def reward(self) -> Callable[..., float]:
        """Return the reward of a completion; rlkl passes the arguments by name (see `rlkl.rewards`)."""
        ...

    def build_base_model(self, folder: Path) -> None:
        """Write a Hugging Face folder (model and tokenizer) to ``folder``; the same bytes each time on one machine."""
        ...

    def further_rows(self) -> Mapping[str, Callable[[], list[dict[str, Any]]]]:
        """Return other rows by part, such as preference pairs."""
        return {}

    def further_rewards(self) -> Mapping[str, Callable[..., float | None]]:
        """Return other rewards by part, such as a gold reward that is only watched."""
        return {}

    def further_models(self) -> Mapping[str, Task]:
        """Return other models by part, such as a teacher, each as the task whose base model it is."""
        return {}
