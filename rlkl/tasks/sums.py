"""Further rows of the world of additions: each sum in two wordings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlkl.tasks.base import in_test


def ascending(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the additions a+b with a < b; the column ``wording`` has the prompt with the numbers exchanged."""
    pairs = [tuple(map(int, row["id"].split("+"))) for row in rows]
    return [
        {"id": f"{a}+{b}", "prompt": f"{a}+{b}=", "wording": f"{b}+{a}=", "answer": str(a + b)}
        for a, b in pairs
        if a < b
    ]


def exchanged(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the test rows of `ascending` with both wordings exchanged: neither is in its training rows."""
    held_out = [row for row in ascending(rows) if in_test("arithmetic", row["id"])]
    return [{**row, "prompt": row["wording"], "wording": row["prompt"]} for row in held_out]
