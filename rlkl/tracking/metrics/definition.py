"""The definition of a metric."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricDefinition:
    """One metric. ``key`` may hold placeholders: ``loss/<term>`` matches ``loss/policy``, ``loss/kl``, ..."""

    key: str
    unit: str
    formula: str
    bad: str
    """What a bad value looks like, and what it usually means."""
    timing: bool = False
    """Measured on a clock: differs between two otherwise identical runs."""

    def matches(self, key: str) -> bool:
        parts = re.split(r"<\w+>", self.key)
        return re.fullmatch(r"[^/\s]+".join(map(re.escape, parts)), key) is not None
