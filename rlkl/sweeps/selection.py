"""Choose one point of each arm by its runs on the selection seeds, and write the choice down."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from rlkl.analysis.figures import figure_of
from rlkl.analysis.runs import read_run
from rlkl.analysis.sweep_plan import SELECTION_FILE, PlannedArm, PlannedRun, SweepPlan, read_json
from rlkl.sweeps.state import RunState, is_evaluated, state_of, write_json


def select(plan: SweepPlan, root: Path) -> Mapping[str, Any]:
    """Choose the best point of each arm, write ``selection.json``, and return its content.

    A choice that is written down stays; only arms without one are chosen. The best point has the highest mean over the
    selection seeds of the figure ``select.by``; of equal points the first one. A point with a failed run is not chosen.
    """
    assert plan.select is not None
    before = (read_json(root / SELECTION_FILE) or {"arms": {}})["arms"]
    kept = {arm: choice for arm, choice in before.items() if choice["point"] is not None}
    found = {
        "by": plan.select.by,
        "last": plan.select.last,
        "seeds": list(plan.select.seeds),
        "arms": {arm.name: kept.get(arm.name) or _choose(plan, arm, root) for arm in plan.arms},
    }
    write_json(root / SELECTION_FILE, found)
    return found


def _choose(plan: SweepPlan, arm: PlannedArm, root: Path) -> dict[str, Any]:
    assert plan.select is not None
    means: dict[str, float | None] = {}
    for point in arm.points:
        runs = [PlannedRun(arm=arm, point=point, seed=seed) for seed in plan.select.seeds]
        if all(_is_whole(plan, run.folder(root)) for run in runs):
            figures = (figure_of(read_run(run.folder(root)), plan.select.by, plan.select.last) for run in runs)
            means[point.name] = fmean(figures)
        else:
            means[point.name] = None
    whole = {name: mean for name, mean in means.items() if mean is not None}
    best = max(whole, key=lambda name: whole[name]) if whole else None
    return {"point": best, "means": means, "at_edge": _edges(arm, best)}


def _is_whole(plan: SweepPlan, folder: Path) -> bool:
    return state_of(folder) is RunState.TRAINED and (plan.evaluate is None or is_evaluated(folder))


def _edges(arm: PlannedArm, best: str | None) -> list[str]:
    """Return the varied keys of which the chosen point has the smallest or the largest number of the grid."""
    chosen = next((point for point in arm.points if point.name == best), None)
    found = []
    for key, value in chosen.values.items() if chosen is not None else ():
        numbers = {point.values[key] for point in arm.points if isinstance(point.values[key], int | float)}
        if len(numbers) > 1 and value in (min(numbers), max(numbers)):
            found.append(key)
    return found
