"""Tables of the figure over the steps of runs, fitted by a power law with a constant (arXiv 2010.14701)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from rlkl.analysis.compare_text import table
from rlkl.analysis.courses import FEWEST_EVALUATIONS
from rlkl.analysis.figures import known_figures
from rlkl.analysis.intervals import Estimate
from rlkl.analysis.runs import Record, RunFolder, read_run
from rlkl.analysis.step_fits import FEWEST_RUNS, FEWEST_STEPS, Runs, StepFit, fit_steps
from rlkl.analysis.study import Study
from rlkl.errors import InputError, did_you_mean


@dataclass(frozen=True, slots=True, kw_only=True)
class StepFits:
    """The fits of all arms of a comparison, over one figure that is measured the same way in all of their runs."""

    figure: str
    """The figure and its prompts, such as ``monitor/gold on training prompts``."""
    fits: Mapping[str, StepFit | None]
    """By row of the comparison; None if its runs share too few steps."""


def fits_over_steps(study: Study) -> StepFits:
    """Estimate the curve of the figure over the updates of its reported runs.

    A figure ``eval/NAME`` is that of the evaluations during training, if all runs have enough of them, else
    ``monitor/NAME`` or ``reward/NAME`` of training. A step samples before its update, so the metrics of step s are
    those of the policy after s - 1 updates; an evaluation at step s is after s.

    Raises:
        InputError: no reported run has the figure over its steps.
    """
    folders = {entry.name: [(run.seed, read_run(run.folder)) for run in entry.runs] for entry in study.entries}
    runs = [run for of_entry in folders.values() for _, run in of_entry]
    figure, key, is_evaluated = _source(runs, study.y)
    curves: dict[str, Runs] = {
        name: {seed: _curve(run, key, is_evaluated=is_evaluated) for seed, run in of_entry}
        for name, of_entry in folders.items()
    }
    return StepFits(figure=figure, fits={name: fit_steps(of_entry) for name, of_entry in curves.items()})


def _source(runs: Sequence[RunFolder], y: str) -> tuple[str, str, bool]:
    """Return the figure in words, its key, and whether it is that of the evaluations during training."""
    if runs and all(len(_having(run.evaluations, y)) >= FEWEST_EVALUATIONS for run in runs):
        return f"{y} during training", y, True
    name = y.removeprefix("eval/")
    for key in [y] if name == y else [f"monitor/{name}", f"reward/{name}"]:
        if any(_having(run.metrics, key) for run in runs):
            return key if name == y else f"{key} on training prompts", key, False
    raise InputError(f"--over steps: no run has {y} over its steps; {did_you_mean(y, known_figures(runs))}")


def _having(records: Sequence[Record], key: str) -> list[Record]:
    return [record for record in records if key in record]


def _curve(run: RunFolder, key: str, *, is_evaluated: bool) -> list[tuple[float, float]]:
    """Return pairs of updates and figure."""
    records, done = (run.evaluations, 0) if is_evaluated else (run.metrics, 1)
    return [(record["step"] - done, record[key]) for record in _having(records, key)]


def step_tables(study: Study, at_steps: Sequence[float] = ()) -> str:
    """Write the fits as Markdown, with a newline at the end; ``at_steps``: updates at which to give the fitted figure.

    Raises `InputError` as `fits_over_steps` does.
    """
    found = fits_over_steps(study)
    lines = [*_fits(found), *_remarks(found), *(_at_steps(found, at_steps) if at_steps else ())]
    return "\n".join(lines) + "\n"


def _fits(found: StepFits) -> Iterator[str]:
    yield "## Over steps"
    yield ""
    yield f"{found.figure}, mean of the runs, after x updates: L_inf + (x0 / x)^a if it falls, L_inf - (x0 / x)^a if it"
    yield f"rises. Intervals are a bootstrap over runs, from {FEWEST_RUNS} runs on. Nothing is extrapolated."
    rows = [_row(name, fit) for name, fit in found.fits.items() if fit is not None]
    if rows:
        yield ""
        yield from table(("arm", "runs", "updates", "L_inf", "95% interval", "a", "95% interval", "x0", "R²"), rows)


def _row(name: str, fit: StepFit) -> list[str]:
    updates = f"{fit.first:g} to {fit.last:g}"
    limit, exponent = (f"{one.mean:.3f}" for one in (fit.limit, fit.exponent))
    intervals = [_interval(fit.limit), _interval(fit.exponent)]
    return [
        name,
        str(fit.runs),
        updates,
        limit,
        intervals[0],
        exponent,
        intervals[1],
        f"{fit.scale:.3g}",
        f"{fit.r2:.2f}",
    ]


def _remarks(found: StepFits) -> Iterator[str]:
    remarks = []
    for name, fit in found.fits.items():
        if fit is None:
            remarks.append(f"- {name}: no fit; its runs share fewer than {FEWEST_STEPS} steps after the first update.")
        else:
            remarks += [f"- {name}: {doubt}." for doubt in fit.doubts]
    if remarks:
        yield ""
    yield from remarks


def _at_steps(found: StepFits, at_steps: Sequence[float]) -> Iterator[str]:
    fits = [(name, fit) for name, fit in found.fits.items() if fit is not None]
    rows = []
    for name, fit in fits:
        for x in at_steps:
            value = fit.at(x)
            beyond = f"beyond the data, {fit.first:g} to {fit.last:g}"
            rows.append(
                [name, f"{x:g}", *([beyond, "-"] if value is None else [f"{value.mean:.3f}", _interval(value)])]
            )
    if rows:
        yield ""
        yield from table(("arm", "updates", "fitted figure", "95% interval"), rows)


def _interval(value: Estimate) -> str:
    if value.low is None or value.high is None:
        return "too few runs"
    return f"{value.low:.3f} to {value.high:.3f}"
