"""Prints of a sweep: its size, one line a finished run, the choice, and the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.table import Table

from rlkl.analysis.sweep_plan import PLAN_FILE, SELECTION_FILE, PlannedRun, SweepPlan, chosen_points
from rlkl.recipe.run_dir import RECIPE_FILE
from rlkl.sweeps.running import Done
from rlkl.sweeps.state import RunState, failure_of, state_of
from rlkl.sweeps.work import Work

_PIPED_WIDTH = 160
_MOST_FIGURES = 6


class View:
    """Prints to the terminal, or to a file in lines of any length."""

    def __init__(self, console: Console | None = None) -> None:
        self._out = console or Console(markup=False, highlight=False, soft_wrap=True)
        self._total = self._number = 0

    def start(self, plan: SweepPlan, root: Path, works: Sequence[Work], *, jobs: int) -> None:
        """Print the size of the sweep and what is left of it."""
        runs = [work for work in works if work.run is not None]
        later = len(plan.arms) * len(plan.seeds) if plan.select is not None else 0
        self._total = len(works) + later
        self._line(f"{root}: {plan.number_of_runs} runs by the plan in {root / PLAN_FILE}, {jobs} at a time")
        for warning in plan.warnings:
            self._line(f"warning: {warning}")
        first = "to select from" if plan.select is not None else "to make"
        self._line(f"{len(runs)} runs {first}" + (f", then at most {later} final ones" if later else ""))

    def note(self, text: str) -> None:
        """Print a sentence about something unusual."""
        self._line(text)

    def finished(self, done: Done, figures: Mapping[str, float], minutes: float | None) -> None:
        """Print one line about a finished run."""
        self._number += 1
        took = "by an earlier sweep" if done.seconds is None else f"{done.seconds:.0f} s"
        words = {"done": took, "failed": f"FAILED, see {done.work.log}", "interrupted": "interrupted"}[done.outcome]
        listed = "".join(f", {key} {value:.3g}" for key, value in list(figures.items())[:_MOST_FIGURES])
        left = "" if minutes is None else f"; about {max(minutes, 0):.0f} min left"
        self._line(f"[{self._number}/{self._total}] {done.work.label}: {words}{listed}{left}")

    def selected(self, plan: SweepPlan, selection: Mapping[str, Any]) -> None:
        """Print the chosen points."""
        labels = {(arm.name, point.name): point.label for arm in plan.arms for point in arm.points}
        for name, choice in selection["arms"].items():
            if choice["point"] is None:
                self._line(f"selected for {name}: nothing, because each of its points has a failed run")
                continue
            label = labels[name, choice["point"]] or choice["point"]
            edge = " (at the edge of its grid: a wider one may hold a better point)" if choice["at_edge"] else ""
            self._line(
                f"selected for {name}: {label} with {selection['by']} {choice['means'][choice['point']]:.3f}{edge}"
            )
        self._line(f"the choice is in {SELECTION_FILE}")

    def interrupted(self, root: Path) -> None:
        """Print how to go on."""
        self._line(f"stopped; all that was computed is in {root}, and the same command goes on")

    def close(self, root: Path, failed: Sequence[Work], left: Sequence[str]) -> None:
        """Print the end of the sweep."""
        for work in failed:
            assert work.run is not None
            failure = failure_of(work.run, work.root) or {}
            self._line(f"failed: {work.label}: {failure.get('message', '')} ({work.log})")
        if failed:
            self._line(f"{len(failed)} run(s) failed and are counted; --retry-failed tries each once more")
        for label in left:
            self._line(f"not finished: {label}; the same command goes on")
        if not failed and not left:
            self._line(f"all runs are done; now: rlkl compare {root}")

    def dry_run(self, plan: SweepPlan, root: Path, *, jobs: int) -> None:
        """Print the runs of a plan, and an estimate of their time if some are done."""
        table = Table("arm", "recipe", "points", "seeds", "runs", "steps", "done", box=None, pad_edge=False)
        final = list(plan.reported_runs(chosen_points(root)))
        for arm in plan.arms:
            seeds = plan.select.seeds if plan.select else plan.seeds
            runs = [PlannedRun(arm=arm, point=point, seed=seed) for point in arm.points for seed in seeds]
            done = str(_count_trained(runs, root))
            later = ""
            if plan.select:
                later = f" + {len(plan.seeds)}"
                done += f" + {_count_trained([run for run in final if run.arm.name == arm.name], root)}"
            labels = ", ".join(point.label or point.name for point in arm.points)
            cells = [
                arm.name,
                arm.recipe,
                labels,
                f"{len(seeds)}{later}",
                f"{len(runs)}{later}",
                str(arm.steps),
                done,
            ]
            table.add_row(*cells)
        width = None if self._out.is_terminal else _PIPED_WIDTH
        Console(markup=False, highlight=False, width=width, file=self._out.file).print(table)
        for warning in plan.warnings:
            self._line(f"warning: {warning}")
        runs = [*plan.selection_runs(), *final]
        known = [seconds for run in runs if (seconds := seconds_of(run.folder(root))) is not None]
        total = f"{plan.number_of_runs} runs in {root}, {jobs} at a time"
        if known:
            left = plan.number_of_runs - len(known)
            self._line(
                f"{total}; {fmean(known):.0f} s a run so far, so about {left * fmean(known) / jobs / 60:.0f} min left"
            )
        else:
            self._line(f"{total}; the time is known once the first run is done")

    def _line(self, text: str) -> None:
        self._out.print(text)


def _count_trained(runs: Sequence[PlannedRun], root: Path) -> int:
    return sum(state_of(run.folder(root)) is RunState.TRAINED for run in runs)


def seconds_of(folder: Path) -> float | None:
    """Return the seconds from a run's recipe to its policy, by their dates; None if it has no policy."""
    policy, recipe = folder / "policy", folder / RECIPE_FILE
    if not policy.is_dir() or not recipe.is_file():
        return None
    return max(policy.stat().st_mtime - recipe.stat().st_mtime, 0.0)
