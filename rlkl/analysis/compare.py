"""Compare arms: means with intervals, differences from a baseline, values at one KL, and fits of the frontier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from rlkl.analysis.against import Against, Design, against_all
from rlkl.analysis.fits import GaoFit, fit
from rlkl.analysis.frontier import Course, FrontierTest, along_trajectory, between_end_points, frontier_test
from rlkl.analysis.intervals import Estimate, estimate
from rlkl.analysis.study import ComparedRun, Entry, Study, load_study
from rlkl.errors import InputError, did_you_mean

Points = Mapping[int, Sequence[tuple[float, float]]]
"""Pairs of KL and figure by seed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """One arm's row."""

    entry: Entry
    estimate: Estimate | None
    """None without a finished run."""
    collapsed: Sequence[int]
    """Seeds whose figure is below the untrained policy's; empty if the figure is no score."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AtKl:
    """One arm at one KL."""

    name: str
    kl: float
    values: Mapping[int, float | None]
    """The figure by seed; None if the seed's points do not bracket the KL."""
    source: str
    """``points``, the ends of runs, or ``trajectory``, along the reported runs."""
    figure: str
    """The figure at this KL: `Study.y` for ``points``, `Study.course_figure` for ``trajectory``."""
    estimate: Estimate | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmFit:
    """Gao's fit of an arm, and the points that it was fitted to."""

    fit: GaoFit
    source: str
    """``points``, the ends of runs, or ``trajectory``, along the reported runs."""
    figure: str
    """The figure that was fitted, as in `AtKl`."""
    start: float
    """The figure of the untrained policy, measured as those of the points are."""
    points: Points
    """KL and gain over ``start``, by fitted seed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A whole comparison; `rlkl.analysis.compare_text.markdown` writes it."""

    study: Study
    baseline: str | None
    """The name of an entry, or of an arm with several points: each point is then compared with the equal one."""
    is_paired: bool
    summaries: Sequence[Summary]
    against: Sequence[Against]
    uncompared: Mapping[str, str]
    """Arms without a test, and the reason."""
    at_kl: Sequence[AtKl]
    against_at_kl: Mapping[float, Sequence[Against]]
    fits: Mapping[str, ArmFit | None]
    tests: Mapping[str, FrontierTest | None]
    """By arm, whether its KL weight moves the frontier; only arms with several points."""


def compare(
    folders: Sequence[Path | str],
    *,
    y: str | None = None,
    x: str | None = None,
    at_kl: Sequence[float] = (),
    baseline: str | None = None,
    is_paired: bool = False,
) -> Comparison:
    """Compare the arms of a sweep's folder, or of the folders of runs.

    Args:
        folders: One folder of `rlkl sweep`, or folders of runs, which `rlkl.analysis.runs.arms_of` groups.
        y: The figure to compare: ``eval/gold`` of the final policy, or a metric of training (mean of the last ten
            steps).
        x: The KL.
        at_kl: KLs at which arms are compared as well.
        baseline: The arm, or the point of an arm, that others are compared with; left out: the sweep's, else the first
            one.
        is_paired: Compare runs of equal seeds as pairs. Decide it before looking.

    Raises:
        InputError: a folder, a figure or the baseline does not exist, or the baseline has several points, none of which
            another arm has.
    """
    study = load_study([Path(folder) for folder in folders], y=y, x=x)
    design = Design(is_paired=is_paired, is_score=study.is_score)
    base, references = _baseline(study, baseline)
    tables = {entry.name: {run.seed: run.value for run in entry.runs} for entry in study.entries}
    against, untested = against_all(tables, references, design)
    arms = list(dict.fromkeys(entry.arm for entry in study.entries))
    matched = [_at(study, arm, kl) for kl in at_kl for arm in arms]
    base_arm = next((entry.arm for entry in study.entries if base in (entry.name, entry.arm)), None)
    return Comparison(
        study=study,
        baseline=base,
        is_paired=is_paired,
        summaries=[_summary(entry, study.is_score) for entry in study.entries],
        against=against,
        uncompared={**_without_baseline(study, base, references), **untested},
        at_kl=matched,
        against_at_kl={kl: _against_at([one for one in matched if one.kl == kl], base_arm, design) for kl in at_kl},
        fits={arm: _fit(study, arm) for arm in arms},
        tests={
            arm: frontier_test(_by_point(runs))
            for arm, runs in study.frontier.items()
            if len({run.point for run in runs}) > 1
        },
    )


def _baseline(study: Study, wanted: str | None) -> tuple[str | None, dict[str, str]]:
    """Return the baseline, and by the name of each entry to compare the entry that it is compared with.

    An arm with several points is a baseline, too: the entries of other arms are compared with its equal points.
    """
    names = [entry.name for entry in study.entries]
    base = wanted or study.baseline or (names[0] if len(names) > 1 else None)
    if base is None or base in names:
        return base, {name: base for name in names if base is not None and name != base}
    points = {entry.point: entry.name for entry in study.entries if entry.arm == base}
    if not points and wanted is not None:
        known = dict.fromkeys([*names, *(entry.arm for entry in study.entries)])
        raise InputError(f"--baseline {wanted!r} is no arm of this comparison; {did_you_mean(wanted, known)}")
    equal = {entry.name: points[entry.point] for entry in study.entries if entry.arm != base and entry.point in points}
    if points and not equal:
        raise InputError(
            f"the baseline {base!r} has several points, and no other arm has one of them; name the point to compare "
            f"with: {', '.join(f'--baseline {name!r}' for name in points.values())}"
        )
    return base, equal


def _without_baseline(study: Study, base: str | None, references: Mapping[str, str]) -> dict[str, str]:
    """Return the entries that have nothing to be compared with, and the reason."""
    if base is None:
        return {}
    has_points = any(base in (entry.name, entry.arm) for entry in study.entries)
    return {
        entry.name: f"{base} has no point {entry.point}" if has_points else f"the baseline {base} has no reported run"
        for entry in study.entries
        if entry.name not in references and base not in (entry.name, entry.arm)
    }


def _summary(entry: Entry, is_score: bool) -> Summary:
    start = entry.untrained if is_score else None
    return Summary(
        entry=entry,
        estimate=estimate(entry.values) if entry.values else None,
        collapsed=[] if start is None else [run.seed for run in entry.runs if run.value < start],
    )


def _points(study: Study, arm: str) -> tuple[Points, str, str]:
    """Return the points of an arm by seed, their source (``points`` or ``trajectory``), and their figure.

    They are the ends of the runs if the arm has several reported points of its grid; else each reported run's own
    trajectory.
    """
    entries = [entry for entry in study.entries if entry.arm == arm and entry.runs]
    if len(entries) > 1:
        seeds = dict.fromkeys(run.seed for entry in entries for run in entry.runs)
        ends = [run for entry in entries for run in entry.runs]
        return (
            {seed: [(run.kl, run.value) for run in ends if run.seed == seed and run.kl is not None] for seed in seeds},
            "points",
            study.y,
        )
    courses = {run.seed: run.course.trajectory for entry in entries for run in entry.runs}
    return courses, "trajectory", study.course_figure


def _at(study: Study, arm: str, kl: float) -> AtKl:
    """Interpolate each seed of an arm at a KL."""
    points, source, figure = _points(study, arm)
    interpolate = between_end_points if source == "points" else along_trajectory
    values = {seed: interpolate(of_seed, kl) for seed, of_seed in points.items()}
    reached = [value for value in values.values() if value is not None]
    return AtKl(
        name=arm,
        kl=kl,
        values=values,
        source=source,
        figure=figure,
        estimate=estimate(reached) if reached else None,
    )


def _against_at(matched: Sequence[AtKl], base: str | None, design: Design) -> list[Against]:
    """Compare the arms that have the baseline's figure at one KL, by the seeds that reach the KL."""
    own = next((one for one in matched if one.name == base), None)
    if own is None:
        return []
    tables = {
        one.name: {seed: value for seed, value in one.values.items() if value is not None}
        for one in matched
        if one.figure == own.figure
    }
    return against_all(tables, {name: own.name for name in tables if name != own.name}, design)[0]


def _fit(study: Study, arm: str) -> ArmFit | None:
    """Estimate the curve of an arm.

    None if the figure is no score, if the untrained figure is unknown, or if no seed has three different KLs.
    """
    points, source, figure = _points(study, arm)
    start = study.untrained.get(arm) if source == "points" else _start_of_courses(study.frontier[arm])
    if start is None or not study.is_score:
        return None
    gains = {seed: [(kl, value - start) for kl, value in of_seed] for seed, of_seed in points.items()}
    found = fit(gains, "linear" if arm in study.best_of_n else "log")
    if found is None:
        return None
    fitted = {one.seed: gains[one.seed] for one in found.seeds}
    return ArmFit(fit=found, source=source, figure=figure, start=start, points=fitted)


def _start_of_courses(runs: Sequence[ComparedRun]) -> float | None:
    """Return the mean figure of the untrained policy at the start of the runs' courses."""
    starts = [run.course.start for run in runs if run.course.start is not None]
    return fmean(starts) if starts else None


def _by_point(runs: Sequence[ComparedRun]) -> dict[str, list[Course]]:
    found: dict[str, list[Course]] = {}
    for run in runs:
        found.setdefault(run.point, []).append(run.course)
    return found
