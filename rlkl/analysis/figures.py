"""One number of each run: a metric of training, or of an evaluation of the final policy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from rlkl.analysis.runs import Record, RunFolder
from rlkl.analysis.sweep_plan import EVALUATION_FILE, read_json
from rlkl.errors import InputError, did_you_mean
from rlkl.tracking.metrics.registry import find_definition

LAST = 10
"""Steps at the end of a run over which a metric of training is averaged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One figure of several runs, measured the same way in all of them."""

    values: Mapping[Path, float]
    """The figure by folder, for the runs that have it."""
    is_of_sweep: bool
    """Whether the figures are from ``evaluation.json``, and not from the run's own records."""


def figure_of(run: RunFolder, key: str, last: int = LAST) -> float:
    """Return a figure of a run; see `find_figure`. Raise `InputError` if the run has no such figure."""
    found = find_figure(run, key, last)
    if found is None:
        near = did_you_mean(key, known_figures([run]))
        raise InputError(f"{run.path} has no figure '{key}'; {near}. The table of metrics is in docs/metrics.md")
    return found


def find_figure(run: RunFolder, key: str, last: int = LAST) -> float | None:
    """Return a figure of a run; None if it has none.

    A metric of an evaluation, ``eval/...``, is that of ``evaluation.json`` if the sweep evaluated the run, else that of
    the evaluation after the last step. Both are of the final policy. A metric of training is the mean over the last
    ``last`` steps. Steps without the metric, such as those in which a monitor abstained, do not count.
    """
    for evaluated in (evaluation_of(run), _final_evaluation(run)):
        if key in evaluated:
            return float(evaluated[key])
    values = [record[key] for record in run.metrics[-last:] if key in record]
    return fmean(values) if values else None


def measured(runs: Sequence[RunFolder], key: str, last: int = LAST) -> Measured:
    """Return the figure of all runs that have it.

    If a sweep evaluated some of the runs, only its evaluations count: those during training have other prompts.
    """
    of_sweep = {run.path: float(found[key]) for run in runs if key in (found := evaluation_of(run))}
    if of_sweep:
        return Measured(values=of_sweep, is_of_sweep=True)
    figures = {run.path: find_figure(run, key, last) for run in runs}
    return Measured(
        values={path: value for path, value in figures.items() if value is not None},
        is_of_sweep=False,
    )


def known_figures(runs: Iterable[RunFolder]) -> set[str]:
    """Return the keys that `find_figure` finds in at least one of the runs."""
    records = [record for run in runs for record in (evaluation_of(run), _final_evaluation(run), *run.metrics[-LAST:])]
    return {key for record in records for key in record} - {"step"}


def is_score(key: str) -> bool:
    """Return whether more of a metric is better: it is a reward, a monitor, or a score of an evaluation."""
    definition = find_definition(key)
    return definition is not None and definition.higher_is_better


def is_timing(key: str) -> bool:
    """Return whether a metric is measured on a clock, so that the untrained policy has no such figure."""
    definition = find_definition(key)
    return definition is not None and definition.timing


def evaluation_of(run: RunFolder) -> dict[str, float]:
    """Return the metrics of the run's ``evaluation.json``; empty without one."""
    found = read_json(run.path / EVALUATION_FILE)
    return {} if found is None else dict(found["metrics"])


def _final_evaluation(run: RunFolder) -> Record:
    """Return the evaluation after the last step; empty without one."""
    if run.evaluations and run.metrics and run.evaluations[-1]["step"] == run.metrics[-1]["step"]:
        return run.evaluations[-1]
    return {}
