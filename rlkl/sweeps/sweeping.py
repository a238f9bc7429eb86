"""A sweep from its plan to its last run. Everything it knows is in its folder, so that the same command goes on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlkl.analysis.figures import evaluation_of
from rlkl.analysis.runs import read_run
from rlkl.analysis.sweep_plan import PLAN_FILE, PlannedRun, SweepPlan, chosen_points, read_plan
from rlkl.errors import InputError
from rlkl.recipe.run_dir import FOLDER_MODE
from rlkl.recipe.run_lock import lock_run_dir
from rlkl.sweeps.making import plan_differences
from rlkl.sweeps.recipes import recipes_of, write_recipes
from rlkl.sweeps.running import Done, run_all
from rlkl.sweeps.selection import select
from rlkl.sweeps.state import write_json
from rlkl.sweeps.view import View
from rlkl.sweeps.work import Work
from rlkl.system.interrupt import StopRequest


def plan_there(plan: SweepPlan, root: Path) -> SweepPlan:
    """Return the plan that the folder of a sweep holds; raise `InputError` if it or a recipe differs from ``plan``."""
    before = read_plan(root)
    if differing := plan_differences(before, plan):
        listed = "\n".join(f"  {line}" for line in differing)
        raise InputError(
            f"{root / PLAN_FILE} was written before the first run and is not changed, and this sweep differs "
            f"from it:\n{listed}\nGive the old values to go on, or another name (name=...) for a new sweep"
        )
    recipes_of(before, root)
    return before


@dataclass(slots=True, kw_only=True)
class Sweep:
    """A sweep that is running."""

    plan: SweepPlan
    root: Path
    places: Sequence[Mapping[str, str]]
    retry: bool
    view: View
    finished: list[Done] = field(default_factory=list)

    def run(self) -> int:
        """Do all work that is left; return 0, 1 if runs failed, or 128 + the signal that interrupted the sweep.

        Raises `InputError` if the folder holds a sweep with another plan, and `RunInUseError` if another process
        runs it.
        """
        self.root.parent.mkdir(parents=True, exist_ok=True)
        self.root.mkdir(mode=FOLDER_MODE, exist_ok=True)
        with lock_run_dir(self.root), StopRequest() as stop:
            self._claim()
            first = list(self.plan.selection_runs() if self.plan.select else self.plan.reported_runs({}))
            works = [*self._untrained(), *self._works(first)]
            self.view.start(self.plan, self.root, works, jobs=len(self.places))
            self._run_all(works, stop)
            if self.plan.select is not None and stop.signal_number is None and not self._works(first):
                self.view.selected(self.plan, select(self.plan, self.root))
                self._run_all(self._works(self.plan.reported_runs(chosen_points(self.root))), stop)
            if stop.signal_number is not None:
                self.view.interrupted(self.root)
                return 128 + stop.signal_number
            return self._close()

    def _claim(self) -> None:
        """Write the plan, or check that the folder's plan is this one and take over its date and machine."""
        if not (self.root / PLAN_FILE).exists():
            write_json(self.root / PLAN_FILE, self.plan.as_json())
            write_recipes(self.plan, self.root)
            return
        before = plan_there(self.plan, self.root)
        if before.origin["commit"] != self.plan.origin["commit"]:
            self.view.note(
                f"the plan was made at commit {before.origin['commit']}, and rlkl is now at "
                f"{self.plan.origin['commit']}: the runs to come are made by other code"
            )
        self.plan = before
        write_recipes(self.plan, self.root)

    def _untrained(self) -> list[Work]:
        if self.plan.evaluate is None:
            return []
        return self._left(Work(plan=self.plan, root=self.root, run=None, model=model) for model in self.plan.models)

    def _works(self, runs: Iterable[PlannedRun]) -> list[Work]:
        return self._left(
            Work(plan=self.plan, root=self.root, run=run, model=run.point.untrained, retry=self.retry) for run in runs
        )

    def _left(self, works: Iterable[Work]) -> list[Work]:
        return [work for work in works if not work.is_done and not work.has_failed]

    def _run_all(self, works: Sequence[Work], stop: StopRequest) -> None:
        run_all(works, self.places, stop, report=self._report, note=self.view.note)

    def _report(self, done: Done) -> None:
        self.finished.append(done)
        self.view.finished(done, figures(done.work) if done.outcome == "done" else {}, self._minutes_left())

    def _minutes_left(self) -> float | None:
        """Return an estimate from the mean time of the runs that this sweep has trained."""
        measured = [done.seconds for done in self.finished if done.work.trained and done.outcome == "done"]
        seconds = [second for second in measured if second is not None]
        if not seconds:
            return None
        left = len(self._works(self._all_runs()))
        if self.plan.select is not None and not chosen_points(self.root):
            left += len(self.plan.arms) * len(self.plan.seeds)
        return left * sum(seconds) / len(seconds) / len(self.places) / 60

    def _all_runs(self) -> list[PlannedRun]:
        return [*self.plan.selection_runs(), *self.plan.reported_runs(chosen_points(self.root))]

    def _close(self) -> int:
        """Print the end; return 1 if a run failed, or if one is left because it was stopped from outside."""
        works = [Work(plan=self.plan, root=self.root, run=run, model=run.point.untrained) for run in self._all_runs()]
        failed = [work for work in works if work.has_failed and not work.is_done]
        lost = [done.work.label for done in self.finished if done.work.run is None and done.outcome == "failed"]
        left = [work for work in works if not work.is_done and not work.has_failed]
        self.view.close(self.root, failed, [*lost, *(work.label for work in left)])
        return 1 if failed or left or lost else 0


FIGURES = ("reward/mean", "kl/policy_to_reference")


def figures(work: Work) -> dict[str, float]:
    """Return some figures of finished work, for a line on the screen."""
    if work.run is None:
        return {}
    run = read_run(work.folder)
    last: dict[str, Any] = dict(run.metrics[-1]) if run.metrics else {}
    found = {key: last[key] for key in FIGURES if key in last}
    found |= {key: last[key] for key in last if key.startswith("monitor/")}
    return found | {
        key: value for key, value in evaluation_of(run).items() if not key.endswith("_se") and key.startswith("eval/")
    }
