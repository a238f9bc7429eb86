"""The result of one side, and the clock and memory that it is measured with."""

from __future__ import annotations

import json
import math
import re
import resource
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

LR = 1e-6
MAX_GRAD_NORM = 1.0
CLIP = 0.2
"""Settings of both sides."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """The steps of one side in a process of its own."""

    seconds: Sequence[float]
    """Seconds of each step after the first."""
    tokens: float
    """Sampled tokens of a step."""
    peak_mib: float = math.nan
    """Largest resident memory of the process; NaN for a whole step, which rlkl makes in several processes."""
    imports_mib: float = math.nan
    """Largest resident memory before a model was loaded."""
    loss: float = math.nan
    """Loss of the first step on given completions."""
    grad_norm: float = math.nan
    """Gradient norm of the first step on given completions, before clipping."""

    def dump(self) -> str:
        """Write it as one line."""
        return json.dumps(asdict(self))

    @staticmethod
    def load(line: str) -> Measured:
        """Read what `dump` wrote."""
        return Measured(**json.loads(line))


def peak_mib() -> float:
    """Return the largest resident memory of this process so far, in MiB.

    ``ru_maxrss`` is never below that of the process that started this one, so Linux's own counter is preferred.
    """
    status = Path("/proc/self/status")
    found = re.search(r"^VmHWM:\s+(\d+) kB", status.read_text(), re.MULTILINE) if status.exists() else None
    return (int(found[1]) if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) / 1024
