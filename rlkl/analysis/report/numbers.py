"""Numbers as the page needs them: short in the file, and readable in a table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev

from rlkl.analysis.runs import RunFolder
from rlkl.tracking.hacking.signals import WINDOW

MISSING = "\N{EM DASH}"
"""Stands in a table where there is no value."""


def short(value: float | None) -> float | None:
    """Round to four significant digits; None for NaN and infinity, which JSON does not know."""
    if value is None or not math.isfinite(value):
        return None
    rounded = float(f"{value:.4g}")
    return int(rounded) if rounded.is_integer() and abs(rounded) < 1e9 else rounded


def shown(value: float) -> str:
    """Write a number for a table.

    >>> [shown(value) for value in (0.76855, 1234.5, 0.00012)]
    ['0.769', '1,234', '1.2e-04']
    """
    size = abs(value)
    if size and (size < 1e-3 or size >= 1e7):
        return f"{value:.1e}"
    return f"{value:,.0f}" if size >= 1000 else f"{value:.3g}"


def last_value(run: RunFolder, key: str) -> float | None:
    """Average a metric over the run's last steps; None if they do not log it."""
    values = [record[key] for record in run.metrics[-WINDOW:] if key in record]
    return fmean(values) if values else None


def over_seeds(values: Sequence[float | None]) -> str:
    """Write mean and standard deviation over seeds; a dash if no run has a value."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    if not known:
        return MISSING
    mean, spread = fmean(known), stdev(known) if len(known) > 1 else 0.0
    if spread == 0 or not 1e-4 < spread < 1e4:
        return shown(mean) + (f" ± {shown(spread)}" if len(known) > 1 else "")
    decimals = max(1 - math.floor(math.log10(spread)), 0)  # two digits of the spread
    return f"{mean:.{decimals}f} ± {spread:.{decimals}f}"
