"""Print a score report on the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, median, pstdev

from rich.console import Console
from rich.table import Table

from rlkl.commands.score import ScoreReport
from rlkl.tracking.console.view import number, one_line

_SHOWN_SAMPLES = 5
_SHOWN_FAILURES = 3
_SHOWN_CHARACTERS = 60


def show(report: ScoreReport, console: Console | None = None) -> None:
    """Print every reward and its components, the time they took, the first samples and the first failures."""
    console = console or Console(markup=False, highlight=False)
    console.print(_rewards(report))
    samples = len(report.completions)
    console.print(
        f"\n{samples} samples in {report.seconds:.2f} s ({samples / max(report.seconds, 1e-9):,.0f} a second), "
        f"{report.setup_s:.2f} s to start"
    )
    console.print(_calls(report))
    console.print(_samples(report))
    for failure in report.round.failures[:_SHOWN_FAILURES]:
        console.print(f"failed: {failure.reward} on {failure.prompt_id}: {one_line(failure.error)}", soft_wrap=True)
    if (more := len(report.round.failures) - _SHOWN_FAILURES) > 0:
        console.print(f"and {more} more failures")


def _rewards(report: ScoreReport) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("reward", "weight", "mean", "std", "min", "max", "scored", "abstained", "failed"):
        table.add_column(name, justify="left" if name == "reward" else "right")
    scored = report.round.scored
    for reward in report.rewards.rewards:
        monitor = reward.section.role == "monitor"
        rows = [one.monitors if monitor else one.components for one in scored]
        failed = sum(reward.name in one.failed for one in scored)
        values = [row[reward.name] for row in rows if reward.name in row]
        weight = "monitor" if monitor else f"{reward.weight:g}"
        counts = [len(values), len(scored) - failed - len(values), failed]
        table.add_row(reward.name, weight, *_spread(values), *map(str, counts))
        prefix = f"{reward.name}/"
        for name in dict.fromkeys(name for row in rows for name in row if name.startswith(prefix)):
            values = [row[name] for row in rows if name in row]
            table.add_row(f"  {name.removeprefix(prefix)}", "", *_spread(values), str(len(values)), "", "")
    values = [one.reward for one in scored if one.reward == one.reward]
    table.add_row("sum", "", *_spread(values), str(len(values)), "", "")
    return table


def _spread(values: Sequence[float]) -> list[str]:
    if not values:
        return ["-"] * 4
    return [number(value) for value in (fmean(values), pstdev(values), min(values), max(values))]


def _calls(report: ScoreReport) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("time in", "calls", "median ms", "95% ms", "most ms", "sum s"):
        table.add_column(name, justify="left" if name == "time in" else "right")
    for name, seconds in report.round.calls_s.items():
        ordered = sorted(seconds)
        if ordered:
            times = (median(ordered), ordered[math.ceil(0.95 * len(ordered)) - 1], ordered[-1])
            table.add_row(name, str(len(ordered)), *(f"{1e3 * t:.3f}" for t in times), f"{sum(ordered):.2f}")
    return table


def _samples(report: ScoreReport) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("sum", justify="right")
    table.add_column("prompt")
    table.add_column("completion")
    rows = zip(report.prompts, report.completions, report.round.scored, strict=True)
    for prompt, completion, scored in list(rows)[:_SHOWN_SAMPLES]:
        value = number(scored.reward) if scored.reward == scored.reward else "none"
        table.add_row(value, _shortened(prompt.text), _shortened(completion.text))
    return table


def _shortened(text: str) -> str:
    line = one_line(text)
    return line if len(line) <= _SHOWN_CHARACTERS else line[: _SHOWN_CHARACTERS - 3] + "..."
