"""Prompts as they are drawn."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from typing import Any

from rlkl.data.fingerprints import column_fingerprints
from rlkl.data.report import DataReport
from rlkl.seeds import derive_seed
from rlkl.types import Prompt, RolloutGroup


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
    def prompts(self) -> Sequence[Prompt]:
        """All prompts, in the order of the data."""
        return self._prompts

    @property
    def fingerprint(self) -> str:
        """Hash of every prompt's id, tokens and pictures, answers and other wordings included, in order."""
        if self._fingerprint is None:
            digest = hashlib.blake2b(digest_size=8)
            for prompt in self._prompts:
                further = [x for x in ([image.key for image in prompt.images], dict(prompt.wordings)) if x]
                digest.update(repr((prompt.id, prompt.token_ids, prompt.answers, *further)).encode())
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
        """Return the prompts number ``position`` to ``position + count - 1`` of an endless stream of epochs.

        Each epoch holds every prompt once, in an order of its own when shuffled. A draw may span epochs, and then may
        hold a prompt twice.
        """
        return [self._at(number) for number in range(position, position + count)]

    def draw(self, position: int, count: int) -> list[Prompt]:
        """Return the prompts that the run trains on, by the number of their draw: those of `take`.

        A source that learns decides a draw when it is asked for the first time, and keeps the prompt.
        """
        return self.take(position, count)

    def ready(self, position: int) -> bool:
        """Return whether the draw with this number can be decided. Those before it have been drawn."""
        return True

    def observe(self, groups: Sequence[RolloutGroup]) -> None:
        """Learn from scored groups, in any order. A group that is observed again changes nothing."""

    def metrics(self, groups: Sequence[RolloutGroup]) -> dict[str, float]:
        """Return metrics of a step's groups, before the step is in a checkpoint."""
        return {}

    def state(self, position: int) -> Mapping[str, Any]:
        """Return what a resumed run needs to draw from ``position`` on, for JSON; empty if that is nothing.

        The groups of a checkpoint (`rlkl.training.pending`) are observed again after a resume.
        """
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up what `state` returned."""

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
