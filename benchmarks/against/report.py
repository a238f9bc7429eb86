"""The table of `benchmarks.against_trl`, and the check that both sides did the same work."""

from __future__ import annotations

import math
import os
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median

from benchmarks.against.measured import Measured

TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}
"""Largest relative difference of the first step's loss and gradient norm.

In bfloat16 the two round differently: TRL computes under autocast from float32 weights, rlkl from bfloat16 ones.
"""
SMALL_LOSS = 1e-2
"""Losses below it are compared on this scale: without a KL the loss of the first step is zero."""
TOKENS_TOLERANCE = 0.1
"""Largest relative difference of the sampled tokens in a whole step, in which each side draws its own."""
SIDES = ("rlkl", "trl")


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """All rounds of one case."""

    name: str
    description: str
    dtype: str
    useful_flops: float
    rate: float
    """Matrix products of this precision, operations a second, measured beside the rounds."""
    rounds: Mapping[str, Sequence[Measured]]
    whole: bool = False
    """Whether each side sampled its own completions."""

    def seconds(self, side: str) -> list[float]:
        """Return the median step of each round."""
        return [median(one.seconds) for one in self.rounds[side]]

    def peak_mib(self, side: str) -> float:
        """Return the median peak memory of the rounds."""
        return median(one.peak_mib for one in self.rounds[side])

    def growth_mib(self, side: str) -> float:
        """Return the median peak memory beyond that of the imported libraries."""
        return median(one.peak_mib - one.imports_mib for one in self.rounds[side])

    def share(self, side: str) -> float:
        """Return the useful operations a second as a share of the matrix rate."""
        return self.useful_flops / median(self.seconds(side)) / self.rate

    def differences(self) -> dict[str, float]:
        """Return the largest relative differences of the rounds: of loss and gradient norm, or of sampled tokens."""
        if self.whole:
            ours, theirs = (median(one.tokens for one in self.rounds[side]) for side in SIDES)
            return {"tokens": abs(ours - theirs) / theirs}
        losses, norms = [], []
        for ours, theirs in zip(self.rounds["rlkl"], self.rounds["trl"], strict=True):
            losses.append(abs(ours.loss - theirs.loss) / max(abs(theirs.loss), SMALL_LOSS))
            norms.append(abs(ours.grad_norm - theirs.grad_norm) / theirs.grad_norm)
        return {"loss": _worst(losses), "grad_norm": _worst(norms)}

    def check(self) -> None:
        """Raise SystemExit if the two sides did not do the same work."""
        limit = TOKENS_TOLERANCE if self.whole else TOLERANCE[self.dtype]
        wrong = {name: value for name, value in self.differences().items() if not value <= limit}
        if wrong:
            raise SystemExit(
                f"case {self.name}: rlkl and TRL differ by {wrong} (relative), expected at most {limit}. rlkl: "
                f"{self.rounds['rlkl'][0]}; TRL: {self.rounds['trl'][0]}. The times compare different work: do not use "
                "them. Look for a setting that only one of benchmarks/against/rlkl_side.py and trl_side.py has"
            )


HEADER = (
    "case",
    "seconds rlkl",
    "seconds TRL",
    "rlkl / TRL",
    "of matrix rate rlkl",
    "TRL",
    "peak MiB rlkl",
    "TRL",
    "rlkl / TRL",
    "beyond imports rlkl",
    "TRL",
    "differ by",
)


def row(compared: Compared) -> list[str]:
    """Return the cells of one case, as `HEADER` names them."""
    ours, theirs = (compared.seconds(side) for side in SIDES)
    return [
        compared.name,
        _spread(ours),
        _spread(theirs),
        f"{median(ours) / median(theirs):.2f}",
        *(["-"] * 7 if compared.whole else _shares_and_memory(compared)),
        ", ".join(f"{name} {value:.0e}" for name, value in compared.differences().items()),
    ]


def _shares_and_memory(compared: Compared) -> list[str]:
    peaks = [compared.peak_mib(side) for side in SIDES]
    return [
        *(f"{compared.share(side):.0%}" for side in SIDES),
        *(f"{peak:,.0f}" for peak in peaks),
        f"{peaks[0] / peaks[1]:.2f}",
        *(f"{compared.growth_mib(side):,.0f}" for side in SIDES),
    ]


def page(found: Sequence[Compared], *, load: float, threads: int) -> str:
    """Return the results as a Markdown page with date and machine."""
    cells = [list(HEADER), ["---"] * len(HEADER), *map(row, found)]
    lines = [
        "# rlkl and TRL side by side",
        "",
        f"Written by `python -m benchmarks.against_trl` on {datetime.now(UTC):%Y-%m-%d} on {machine()}, "
        f"{threads} threads a side, load {load:.2f} before the run.",
        busy(load),
        f"rlkl {version_of('rlkl')}, TRL {version('trl')}, torch {version('torch')}, "
        f"transformers {version('transformers')}.",
        "",
        "A step is one optimizer step on given completions: reference pass, forward, backward, clipping, AdamW. Each",
        "round is a fresh process a side, by turns. Seconds: median of the rounds (lowest to highest). Useful",
        "operations: 2 P a token forward, 4 P backward, 2 P for the reference; P weights, padding not counted.",
        "A whole step also samples the completions (rlkl with vLLM, TRL with transformers), scores them, and in rlkl",
        "publishes the weights and proves that they arrived.",
        "",
        *("| " + " | ".join(line) + " |" for line in cells),
        "",
        *(
            f"- {one.name}: {one.description}; matrix products {one.rate / 1e9:,.0f} GFLOP/s, "
            f"useful {one.useful_flops / 1e12:.2f} TFLOP a step"
            for one in found
        ),
        "",
    ]
    return "\n".join(line for line in lines if line is not None)


def busy(load: float) -> str | None:
    """Return a warning if other programs use the machine; None if it is quiet."""
    if load <= 0.25 * (os.cpu_count() or 1):
        return None
    return f"**The machine was busy (load {load:.2f} on {os.cpu_count()} cores): these figures are of no use.**"


def machine() -> str:
    """Return the processor and the number of cores."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE) if info.exists() else None
    return f"{found[1] if found else platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def version_of(package: str) -> str:
    """Return the ``__version__`` of a package, which may run from a checkout."""
    return __import__(package).__version__


def _worst(differences: Sequence[float]) -> float:
    return max(differences, key=lambda value: math.inf if math.isnan(value) else value)


def _spread(seconds: Sequence[float]) -> str:
    digits = 2 if min(seconds) >= 1 else 3
    return f"{median(seconds):.{digits}f} ({min(seconds):.{digits}f} to {max(seconds):.{digits}f})"
