"""The runs that a comparison is about, read from the folder of a sweep, or from the folders of runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, get_args

from rlkl.analysis.courses import KL_OF_EVALUATION, KL_OF_TRAINING, Courses, courses_of
from rlkl.analysis.figures import LAST, Measured, is_score, is_timing, known_figures, measured
from rlkl.analysis.frontier import Course
from rlkl.analysis.runs import RunFolder, arms_of, read_run
from rlkl.analysis.sweep_plan import (
    EVALUATION_FILE,
    PLAN_FILE,
    SELECTION_FILE,
    UNTRAINED,
    PlannedArm,
    PlannedRun,
    Point,
    SweepPlan,
    chosen_points,
    read_json,
    read_plan,
)
from rlkl.errors import InputError, did_you_mean
from rlkl.recipe.keys import rules_of
from rlkl.updates.settings import UpdateSettings

FIGURES = ("eval/mean", "reward/mean")
"""The compared figure if none is named: the first one that all runs have, else the last one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedRun:
    """One finished run."""

    folder: Path
    arm: str
    point: str
    """The varied keys of its point, short."""
    seed: int
    value: float
    kl: float | None
    tokens: float | None
    """Sampled tokens; None if the run sampled nothing."""
    seconds: float
    steps: int
    course: Course
    """KL and figure over the steps, by `Study.course_figure`; empty if the records do not hold both."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """The reported runs of one point of an arm: one row of the table."""

    name: str
    arm: str
    point: str
    runs: Sequence[ComparedRun]
    """Finished runs that have the figure, by seed."""
    failed: Sequence[int]
    """Seeds of failed runs."""
    missing: Sequence[int]
    """Seeds of runs that are not finished yet."""
    without_figure: Sequence[int]
    """Seeds of finished runs that do not have the figure."""
    untrained: float | None
    """The figure of the untrained policy."""

    @property
    def values(self) -> list[float]:
        """The figure of each finished run."""
        return [run.value for run in self.runs]


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectionRow:
    """The choice of the point of an arm."""

    arm: str
    means: Mapping[str, float | None]
    """Mean figure by point; None if a run of the point failed."""
    chosen: str | None
    at_edge: Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """Input of a comparison."""

    name: str
    y: str
    x: str
    entries: Sequence[Entry]
    frontier: Mapping[str, Sequence[ComparedRun]]
    """Every finished run of each arm that has the figure, selection runs and all points included."""
    untrained: Mapping[str, float]
    """The figure of the untrained policy by arm, if it is known."""
    course_figure: str = ""
    """The figure of the runs' courses, which may be measured on other prompts; empty if no run has a course."""
    course_kl: str = ""
    """The KL of the runs' courses."""
    best_of_n: frozenset[str] = frozenset()
    """Arms whose rule imitates the best of several samples."""
    selection: Sequence[SelectionRow] = ()
    selected_by: str = ""
    baseline: str | None = None
    notes: Sequence[str] = field(default_factory=tuple)

    @property
    def is_score(self) -> bool:
        """Whether more of the figure is better."""
        return is_score(self.y)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Axes:
    """The figure, the KL and the course of each finished run."""

    y: str
    x: str
    figures: Measured
    kls: Measured
    courses: Courses


def load_study(folders: Sequence[Path], *, y: str | None, x: str | None) -> Study:
    """Read the folder of a sweep, or the folders of runs.

    ``y``: the figure to compare; None: the figure by which the sweep selects, else ``eval/mean`` if all runs have it,
    else ``reward/mean``. ``x``: the KL; None: ``eval/kl`` if all runs have it, else ``kl/policy_to_reference``.

    Raises `InputError` if there is nothing to compare or a figure is missing.
    """
    if not folders:
        raise InputError("rlkl compare needs the folder of a sweep (runs/rules), or folders of runs")
    if len(folders) == 1 and (folders[0] / PLAN_FILE).is_file():
        return _of_sweep(folders[0], y, x)
    return _of_runs([read_run(folder) for folder in folders], y, x)


def _of_sweep(root: Path, y: str | None, x: str | None) -> Study:
    plan = read_plan(root)
    chosen = chosen_points(root)
    reported = list(plan.reported_runs(chosen))
    planned = list({run.folder(root): run for run in (*plan.selection_runs(), *reported)}.values())
    folders = {run.folder(root): read_run(run.folder(root)) for run in planned if _is_trained(run, root)}
    if not folders:
        raise InputError(f"{root}: no run is finished yet; `rlkl sweep` with the same words goes on")
    select = plan.select
    if y is None:
        whole = [run for run in folders.values() if _is_evaluated(plan, run.path)]
        y = select.by if select else _default(whole or list(folders.values()), FIGURES)
    axes = _axes(list(folders.values()), y, x, select.last if select else LAST)
    runs = {
        path: _compared(folders[path], run.arm.name, run.point.label, axes)
        for run in planned
        if (path := run.folder(root)) in axes.figures.values
    }
    frontier: dict[str, list[ComparedRun]] = {arm.name: [] for arm in plan.arms}
    for run in planned:
        if (found := runs.get(run.folder(root))) is not None:
            frontier[run.arm.name].append(found)
    untrained = _untrained_of(plan, root, axes, folders)
    return Study(
        name=plan.name,
        y=axes.y,
        x=axes.x,
        entries=_entries(plan, root, reported, runs, untrained),
        frontier=frontier,
        untrained=untrained,
        course_figure=axes.courses.figure,
        course_kl=axes.courses.kl,
        best_of_n=frozenset(arm.name for arm in plan.arms if _is_best_of_n(arm.resolved["update"]["rule"])),
        selection=_selection(plan, root),
        selected_by=plan.select.by if plan.select else "",
        baseline=plan.baseline,
        notes=plan.warnings,
    )


def _is_trained(run: PlannedRun, root: Path) -> bool:
    return (run.folder(root) / "policy").is_dir()


def _is_evaluated(plan: SweepPlan, folder: Path) -> bool:
    return plan.evaluate is None or (folder / EVALUATION_FILE).is_file()


def _entries(
    plan: SweepPlan,
    root: Path,
    reported: Sequence[PlannedRun],
    runs: Mapping[Path, ComparedRun],
    untrained: Mapping[str, float],
) -> list[Entry]:
    """Return one entry for each reported point, in the order of the plan."""
    grouped: dict[tuple[str, str], list[PlannedRun]] = {}
    for arm in plan.arms:
        for run in reported:
            if run.arm.name == arm.name:
                grouped.setdefault((arm.name, run.point.name), []).append(run)
    found = []
    for (arm, _), of_point in grouped.items():
        label = of_point[0].point.label
        several = sum(name == arm for name, _ in grouped) > 1
        lost = [run for run in of_point if run.folder(root) not in runs]
        failed = [run for run in lost if run.failure(root).exists()]
        whole = [run for run in lost if _is_trained(run, root) and _is_evaluated(plan, run.folder(root))]
        found.append(
            Entry(
                name=f"{arm} {label}" if several else arm,
                arm=arm,
                point=label,
                runs=[runs[path] for run in of_point if (path := run.folder(root)) in runs],
                failed=[run.seed for run in failed],
                missing=[run.seed for run in lost if run not in failed and run not in whole],
                without_figure=[run.seed for run in whole if run not in failed],
                untrained=untrained.get(arm),
            )
        )
    return found


def _selection(plan: SweepPlan, root: Path) -> list[SelectionRow]:
    selection = read_json(root / SELECTION_FILE)
    if plan.select is None or selection is None:
        return []
    return [_selection_row(arm, selection["arms"][arm.name]) for arm in plan.arms]


def _selection_row(arm: PlannedArm, choice: Mapping[str, Any]) -> SelectionRow:
    labels = {point.name: point.label or point.name for point in arm.points}
    chosen = choice["point"]
    return SelectionRow(
        arm=arm.name,
        means={labels[name]: mean for name, mean in choice["means"].items()},
        chosen=None if chosen is None else labels[chosen],
        at_edge=choice["at_edge"],
    )


def _untrained_of(plan: SweepPlan, root: Path, axes: _Axes, folders: Mapping[Path, RunFolder]) -> dict[str, float]:
    """Return the figure of each arm's untrained policy, measured as those of the runs are."""
    found: dict[str, float] = {}
    for arm in plan.arms:
        evaluated = (read_json(root / UNTRAINED / arm.points[0].untrained / EVALUATION_FILE) or {}).get("metrics", {})
        if axes.figures.is_of_sweep:
            start = evaluated.get(axes.y)
        else:
            start = _start([run for path, run in folders.items() if _is_of(path, arm, arm.points, root)], axes)
        if start is not None:
            found[arm.name] = float(start)
    return found


def _is_of(path: Path, arm: PlannedArm, points: Sequence[Point], root: Path) -> bool:
    return any(path.parent == root / arm.folder / point.name for point in points)


def _start(runs: Iterable[RunFolder], axes: _Axes) -> float | None:
    """Return the mean figure before training: of the evaluation at step 0, or of the first step's samples.

    The first step samples before its update, so its metrics are those of the untrained policy. None for a time, and if
    the figures of the runs are from the evaluation of a sweep, which has other prompts.
    """
    if axes.figures.is_of_sweep or is_timing(axes.y):
        return None
    starts = []
    for run in runs:
        records = run.evaluations if axes.y.startswith("eval/") else run.metrics
        first = 0 if axes.y.startswith("eval/") else 1
        if records and records[0]["step"] == first and axes.y in records[0]:
            starts.append(records[0][axes.y])
    return fmean(starts) if starts else None


def _of_runs(runs: Sequence[RunFolder], y: str | None, x: str | None) -> Study:
    finished = [run for run in runs if run.is_finished]
    if not finished:
        listed = ", ".join(str(run.path) for run in runs)
        raise InputError(f"no run is finished yet: {listed}. `rlkl train --resume RUN` goes on with one")
    axes = _axes(finished, y or _default(finished, FIGURES), x, LAST)
    entries, frontier, untrained = [], {}, {}
    for arm in arms_of(runs):
        repeated = sorted({run.seed for run in arm.runs if sum(other.seed == run.seed for other in arm.runs) > 1})
        if repeated:
            raise InputError(f"{arm.label}: two runs have the seed {repeated[0]}; they are equal, so give one of them")
        done = sorted((run for run in arm.runs if run.is_finished), key=lambda run: run.seed)
        compared = [_compared(run, arm.label, "", axes) for run in done if run.path in axes.figures.values]
        start = _start(done, axes)
        if start is not None:
            untrained[arm.label] = start
        frontier[arm.label] = compared
        entries.append(
            Entry(
                name=arm.label,
                arm=arm.label,
                point="",
                runs=compared,
                failed=[],
                missing=[run.seed for run in arm.runs if not run.is_finished],
                without_figure=[run.seed for run in done if run.path not in axes.figures.values],
                untrained=start,
            )
        )
    return Study(
        name="runs",
        y=axes.y,
        x=axes.x,
        entries=entries,
        frontier=frontier,
        untrained=untrained,
        course_figure=axes.courses.figure,
        course_kl=axes.courses.kl,
        best_of_n=frozenset(
            arm.label for arm in arms_of(runs) if _is_best_of_n(str(arm.runs[0].recipe["update"]["rule"]))
        ),
    )


def _is_best_of_n(rule: str) -> bool:
    built_in = get_args(get_args(UpdateSettings)[0])
    return any(settings.is_best_of_n for settings in built_in if rule in rules_of(settings))


def _axes(runs: Sequence[RunFolder], y: str, x: str | None, last: int) -> _Axes:
    """Measure the figure and the KL of finished runs. Raise `InputError` if no run has one that was asked for."""
    figures = measured(runs, y, last)
    with_figure = [run for run in runs if run.path in figures.values]
    kl = x or _default(with_figure, (KL_OF_EVALUATION, KL_OF_TRAINING))
    kls = measured(with_figure, kl, last)
    for option, key, found in (("--y", y, figures), ("--x", x, kls)):
        if key is not None and not found.values:
            raise InputError(f"{option} {key}: no run has this figure; {did_you_mean(key, known_figures(runs))}")
    courses = courses_of(with_figure, y, kl, is_of_sweep=figures.is_of_sweep)
    return _Axes(y=y, x=kl, figures=figures, kls=kls, courses=courses)


def _default(runs: Sequence[RunFolder], keys: Sequence[str]) -> str:
    """Return the first key that all runs have, else the last one."""
    return next((key for key in keys if len(measured(runs, key).values) == len(runs)), keys[-1])


def _compared(run: RunFolder, arm: str, point: str, axes: _Axes) -> ComparedRun:
    rollout = run.recipe["rollout"]
    per_step = rollout["prompts_per_step"] * rollout["samples_per_prompt"]
    lengths = [
        record["rollout/length_mean"] * per_step * record.get("rollout/rounds", 1.0)
        for record in run.metrics
        if "rollout/length_mean" in record
    ]
    return ComparedRun(
        folder=run.path,
        arm=arm,
        point=point,
        seed=run.seed,
        value=axes.figures.values[run.path],
        kl=axes.kls.values.get(run.path),
        tokens=sum(lengths) if lengths else None,
        seconds=sum(record.get("time/step_s", 0.0) for record in run.metrics),
        steps=len(run.metrics),
        course=axes.courses.by_folder.get(run.path, Course()),
    )
