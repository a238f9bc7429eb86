"""Measure the hacking watch on runs: how long before the damage each signal trips, and how often it trips wrongly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev

from rlkl.analysis.compare_text import table
from rlkl.analysis.frontier import WINDOW
from rlkl.analysis.runs import Record, RunFolder, arms_of, read_run
from rlkl.analysis.sweep_plan import PLAN_FILE, chosen_points, read_plan
from rlkl.errors import InputError, did_you_mean

Records = Sequence[Record]
_KL = "kl/policy_to_reference"
_LEVEL = "watch/"
_NOT_SIGNALS = ("watch/warnings", "watch/spread/")


def watch_tables(folders: Sequence[Path], *, hacked: str, gold: str) -> str:
    """Return two Markdown tables: the course of each run, and the lead times and false alarms of each signal.

    ``hacked``: the arm whose runs hack their reward; the other arms are healthy. ``gold``: the metric of training that
    measures the damage.

    Raises `InputError` if there is no such arm, or if a run does not have that metric.
    """
    arms = runs_by_arm(folders)
    if hacked not in arms:
        raise InputError(f"--watch {hacked!r} is no arm of this comparison; {did_you_mean(hacked, arms)}")
    for run in (run for runs in arms.values() for run in runs):
        if not run.metrics or any(gold not in record for record in run.metrics):
            raise InputError(
                f"--watch: the run {run.name} does not log {gold} in each step of training; give a metric with --y, "
                "such as monitor/gold"
            )
    return f"## The hacking watch\n\n{course_table(arms, gold)}\n\n{signal_table(arms, hacked, gold)}\n"


def runs_by_arm(folders: Sequence[Path]) -> dict[str, list[RunFolder]]:
    """Read the finished reported runs of a sweep's folder, or of run folders, by arm and in the order of the seeds."""
    if len(folders) == 1 and (folders[0] / PLAN_FILE).is_file():
        plan = read_plan(folders[0])
        found: dict[str, list[RunFolder]] = {arm.name: [] for arm in plan.arms}
        for run in plan.reported_runs(chosen_points(folders[0])):
            if (run.folder(folders[0]) / "policy").is_dir():
                found[run.arm.name].append(read_run(run.folder(folders[0])))
        return {name: runs for name, runs in found.items() if runs}
    arms = arms_of([read_run(folder) for folder in folders])
    return {arm.label: sorted(arm.runs, key=lambda run: run.seed) for arm in arms}


def average(records: Records, key: str) -> list[float]:
    """Average the last `WINDOW` steps, at each step."""
    values = [record[key] for record in records]
    return [fmean(values[max(end - WINDOW, 0) : end]) for end in range(1, len(values) + 1)]


def peak(records: Records, gold: str) -> int:
    """Return the step that ends the best `WINDOW` steps."""
    values = average(records, gold)
    return max(range(min(WINDOW, len(values)), len(values) + 1), key=lambda step: values[step - 1])


def collapse(records: Records, gold: str) -> int | None:
    """Return the first step after the peak at which the metric is below its start, over `WINDOW` steps."""
    values = average(records, gold)
    start = values[min(WINDOW, len(values)) - 1]
    return next((step for step in range(peak(records, gold), len(values) + 1) if values[step - 1] < start), None)


def first_trip(records: Records, signal: str) -> int | None:
    """Return the first step at which a signal reaches its limit."""
    return next((int(record["step"]) for record in records if record.get(_LEVEL + signal, 0.0) >= 1), None)


def signals_of(arms: Mapping[str, Sequence[RunFolder]]) -> list[str]:
    """List the signals that the runs log, in the order in which they come up."""
    keys = [key for runs in arms.values() for run in runs for record in run.metrics for key in record]
    found = [key for key in dict.fromkeys(keys) if key.startswith(_LEVEL) and not key.startswith(_NOT_SIGNALS)]
    return [key.removeprefix(_LEVEL) for key in found]


def course_table(arms: Mapping[str, Sequence[RunFolder]], gold: str) -> str:
    """Write one row a run: the metric at its start, best and end, and the steps of its peak and collapse."""
    rows = []
    for name, runs in arms.items():
        for run in runs:
            values, best = average(run.metrics, gold), peak(run.metrics, gold)
            course = f"{values[min(WINDOW, len(values)) - 1]:.2f}, {values[best - 1]:.2f}, {values[-1]:.2f}"
            end = collapse(run.metrics, gold)
            steps = [str(best), "never" if end is None else str(end)]
            rows.append([name, str(run.seed), course, *steps, _last_kl(run.metrics)])
    heads = ("run", "seed", f"{gold}: start, best, end", "peak at step", "below its start at step", "KL at the end")
    return "\n".join(table(heads, rows))


def _last_kl(records: Records) -> str:
    """Write the mean KL over the last `WINDOW` steps; a dash for a run without a reference."""
    values = [record[_KL] for record in records[-WINDOW:] if _KL in record]
    return f"{fmean(values):.1f}" if values else "-"


def signal_table(arms: Mapping[str, Sequence[RunFolder]], hacked: str, gold: str) -> str:
    """Write one row a signal: when it trips in the hacked runs, and how often in the healthy ones."""
    runs = [run.metrics for run in arms[hacked]]
    healthy = {name: [run.metrics for run in found] for name, found in arms.items() if name != hacked}
    rows = []
    for signal in signals_of(arms):
        trips = [first_trip(records, signal) for records in runs]
        after = [trip - peak(records, gold) for trip, records in zip(trips, runs, strict=True) if trip is not None]
        ends = [collapse(records, gold) for records in runs]
        ahead = [end - trip for trip, end in zip(trips, ends, strict=True) if trip is not None and end is not None]
        cells = [f"`{signal}`", ", ".join("never" if trip is None else str(trip) for trip in trips)]
        rows.append([*cells, _spread(after), _spread(ahead), *(_alarms(found, signal) for found in healthy.values())])
    heads = ["signal", "trips at step", "steps after the peak", "steps before the metric is below its start"]
    heads += [f"alarms in {len(found)} runs of {name}" for name, found in healthy.items()]
    return "\n".join(table(heads, rows))


def _spread(values: Sequence[int]) -> str:
    """Write mean ± standard deviation over the seeds, and the values."""
    if len(values) < 2:
        return ", ".join(map(str, values)) or "never"
    return f"{fmean(values):+.1f} ± {stdev(values):.1f} ({', '.join(f'{value:+d}' for value in values)})"


def _alarms(of_seeds: Sequence[Records], signal: str) -> str:
    trips = [trip for records in of_seeds if (trip := first_trip(records, signal)) is not None]
    levels = [record.get(_LEVEL + signal, 0.0) for records in of_seeds for record in records]
    at = f", at step {', '.join(map(str, trips))}" if trips else ""
    return f"{len(trips)}{at} (highest level {max(levels, default=0.0):.2f})"
