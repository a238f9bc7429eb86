"""Count the rows of a data source that were left out, with reasons and examples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Problem = Literal["empty", "malformed", "too_long", "image"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BadRow:
    """A row that was left out. ``row`` counts from 0 (line number - 1 in a JSON Lines file); its text counts from 1."""

    row: int
    problem: Problem
    detail: str

    def __str__(self) -> str:
        return f"row {self.row + 1} ({self.problem}: {self.detail})"


@dataclass(frozen=True, slots=True, kw_only=True)
class DataReport:
    """Counts of rows: ``total = kept + empty + malformed + too_long + image``."""

    total: int
    kept: int
    empty: int
    malformed: int
    too_long: int
    image: int
    """Rows with a picture that is missing or does not decode, or with more or fewer than their prompt mentions."""
    examples: tuple[BadRow, ...]
    """The first few bad rows of each kind."""

    @property
    def bad_fraction(self) -> float:
        """Share of the rows that were left out; 0 of no rows."""
        return (self.total - self.kept) / self.total if self.total else 0.0

    def __str__(self) -> str:
        counts = f"{self.kept} of {self.total} rows kept"
        if self.kept == self.total:
            return counts
        images = f", {self.image} with bad images" if self.image else ""
        kinds = f"{self.empty} empty, {self.malformed} malformed, {self.too_long} too long{images}"
        return f"{counts} ({kinds}): " + "; ".join(map(str, self.examples))


class BadPrompt(Exception):
    """Ends the reading of one row. `rlkl.data.prompts` counts it."""

    def __init__(self, problem: Problem, detail: str) -> None:
        super().__init__(problem, detail)
        self.problem: Problem = problem
        self.detail = detail
